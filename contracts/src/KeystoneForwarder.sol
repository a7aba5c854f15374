// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC165, IReceiver} from "./IReceiver.sol";

/// Delivers a workflow's report once, and says so.  To a receiver and a watcher it behaves like Chainlink's
/// KeystoneForwarder 1.0.0; it verifies no signatures, which is what production's exists for: never mint value with it.
contract KeystoneForwarder {
    enum TransmissionState {
        NOT_ATTEMPTED,
        SUCCEEDED,
        INVALID_RECEIVER,
        FAILED
    }

    struct Transmission {
        address transmitter;
        bool invalidReceiver;
        bool success;
        uint80 gasLimit;
    }

    struct TransmissionInfo {
        bytes32 transmissionId;
        TransmissionState state;
        address transmitter;
        bool invalidReceiver;
        bool success;
        uint80 gasLimit;
    }

    /// version 1, execution id 32, timestamp 4, DON id 4, DON config version 4: for the forwarder.
    uint256 private constant FORWARDER_HEADER_BYTES = 45;
    /// and workflow id 32, workflow name 10, workflow owner 20, report id 2: the receiver's metadata.
    uint256 private constant HEADER_BYTES = 109;

    uint256 private constant ERC165_QUERY_GAS = 30_000;
    /// Kept back for the bookkeeping and the event, so that a receiver that burns all it gets still leaves a trace.
    uint256 private constant OWN_GAS = 50_000;
    uint256 private constant MINIMUM_RECEIVER_GAS = 40_000;

    mapping(bytes32 transmissionId => Transmission) private _transmissions;

    event ReportProcessed(
        address indexed receiver, bytes32 indexed workflowExecutionId, bytes2 indexed reportId, bool result
    );

    error InvalidReport();
    error AlreadyAttempted(bytes32 transmissionId);
    error InsufficientGasForRouting(bytes32 transmissionId);

    /// Anyone may deliver, and deliver again what failed; the receiver's revert does not revert this transaction.
    function report(
        address receiver,
        bytes calldata rawReport,
        bytes calldata, /* reportContext */
        bytes[] calldata /* signatures */
    ) external {
        if (rawReport.length < HEADER_BYTES) revert InvalidReport();
        bytes32 executionId = bytes32(rawReport[1:33]);
        bytes2 reportId = bytes2(rawReport[107:109]);
        bool result = _route(getTransmissionId(receiver, executionId, reportId), receiver, rawReport);
        emit ReportProcessed(receiver, executionId, reportId, result);
    }

    function getTransmissionId(address receiver, bytes32 workflowExecutionId, bytes2 reportId)
        public
        pure
        returns (bytes32)
    {
        return keccak256(abi.encodePacked(receiver, workflowExecutionId, reportId));
    }

    function getTransmissionInfo(address receiver, bytes32 workflowExecutionId, bytes2 reportId)
        external
        view
        returns (TransmissionInfo memory)
    {
        bytes32 id = getTransmissionId(receiver, workflowExecutionId, reportId);
        Transmission memory t = _transmissions[id];
        TransmissionState state = TransmissionState.FAILED;
        if (t.transmitter == address(0)) state = TransmissionState.NOT_ATTEMPTED;
        else if (t.invalidReceiver) state = TransmissionState.INVALID_RECEIVER;
        else if (t.success) state = TransmissionState.SUCCEEDED;
        return TransmissionInfo(id, state, t.transmitter, t.invalidReceiver, t.success, t.gasLimit);
    }

    function _route(bytes32 id, address receiver, bytes calldata rawReport) private returns (bool success) {
        uint256 gasBefore = gasleft();
        if (gasBefore < OWN_GAS + ERC165_QUERY_GAS * 2 + MINIMUM_RECEIVER_GAS) revert InsufficientGasForRouting(id);
        Transmission storage transmission = _transmissions[id];
        if (transmission.success || transmission.invalidReceiver) revert AlreadyAttempted(id);
        transmission.transmitter = msg.sender;
        transmission.gasLimit = uint80(gasBefore - OWN_GAS);

        if (!_isReceiver(receiver)) {
            transmission.invalidReceiver = true;
            return false;
        }
        bytes memory payload = abi.encodeCall(
            IReceiver.onReport, (rawReport[FORWARDER_HEADER_BYTES:HEADER_BYTES], rawReport[HEADER_BYTES:])
        );
        uint256 receiverGas = gasleft() - OWN_GAS;
        // Not a Solidity call: that would copy the answer, and a hostile receiver's answer can be as large as its gas.
        assembly ("memory-safe") {
            success := call(receiverGas, receiver, 0, add(payload, 0x20), mload(payload), 0, 0)
        }
        if (success) transmission.success = true;
    }

    function _isReceiver(address account) private view returns (bool) {
        // ERC-165's own order: it knows ERC-165, does not say yes to everything, and is a receiver.
        return _supports(account, type(IERC165).interfaceId) && !_supports(account, 0xffffffff)
            && _supports(account, type(IReceiver).interfaceId);
    }

    function _supports(address account, bytes4 interfaceId) private view returns (bool) {
        bytes memory query = abi.encodeCall(IERC165.supportsInterface, (interfaceId));
        bool answered;
        uint256 size;
        uint256 value;
        assembly ("memory-safe") {
            answered := staticcall(ERC165_QUERY_GAS, account, add(query, 0x20), mload(query), 0, 0x20)
            size := returndatasize()
            value := mload(0)
        }
        return answered && size >= 0x20 && value > 0;
    }
}
