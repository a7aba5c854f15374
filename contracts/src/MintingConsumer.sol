// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC165, IReceiver} from "./IReceiver.sol";
import {StablecoinERC20} from "./StablecoinERC20.sol";

/// Mints and redeems what a report says.  It stands for upstream's MintingConsumerWithACE, without its proxy, and
/// keeps upstream's two openings on purpose, since the daemon must live with them: nobody checks who calls, and one
/// bank reference can be minted twice.
contract MintingConsumer is IReceiver {
    struct PolicyPayload {
        bytes4 selector;
        address sender;
        bytes data;
        bytes context;
    }

    uint8 internal constant MINT = 1;
    uint8 internal constant REDEEM = 2;

    address public immutable admin;
    StablecoinERC20 internal immutable _stablecoin;
    bool public policyRejects;

    event MintInstructionReceived(
        address indexed recipient, uint256 amount, bytes32 indexed bankReference, uint256 timestamp
    );
    event MintExecuted(address indexed recipient, uint256 amount, bytes32 indexed bankReference);
    event RedeemInstructionReceived(
        address indexed account, uint256 amount, bytes32 indexed bankReference, uint256 timestamp
    );
    event RedeemExecuted(address indexed account, uint256 amount, bytes32 indexed bankReference);

    error OnlyAdmin(address sender);
    error UnknownInstruction(uint8 instruction);
    error PolicyRunRejected(address policy, string reason, PolicyPayload payload);

    constructor(StablecoinERC20 stablecoin, address admin_) {
        _stablecoin = stablecoin;
        admin = admin_;
    }

    function onReport(bytes calldata, bytes calldata report) external {
        processMintReport(report);
    }

    function processMintReport(bytes calldata report) public {
        if (policyRejects) {
            revert PolicyRunRejected(
                address(this), "the policy rejects", PolicyPayload(msg.sig, msg.sender, msg.data[4:], "")
            );
        }
        (uint8 instruction, address account, uint256 amount, bytes32 bankReference) =
            abi.decode(report, (uint8, address, uint256, bytes32));
        if (instruction == MINT) _mint(account, amount, bankReference);
        else if (instruction == REDEEM) _redeem(account, amount, bankReference);
        else revert UnknownInstruction(instruction);
    }

    /// Stands for upstream's policy engine: while set, every report is refused.
    function setPolicyRejects(bool rejects) external {
        if (msg.sender != admin) revert OnlyAdmin(msg.sender);
        policyRejects = rejects;
    }

    function getStablecoin() external view returns (address) {
        return address(_stablecoin);
    }

    function supportsInterface(bytes4 interfaceId) external pure returns (bool) {
        return interfaceId == type(IReceiver).interfaceId || interfaceId == type(IERC165).interfaceId;
    }

    function _mint(address recipient, uint256 amount, bytes32 bankReference) internal virtual {
        emit MintInstructionReceived(recipient, amount, bankReference, block.timestamp);
        _stablecoin.mint(recipient, amount);
        emit MintExecuted(recipient, amount, bankReference);
    }

    function _redeem(address account, uint256 amount, bytes32 bankReference) internal {
        emit RedeemInstructionReceived(account, amount, bankReference, block.timestamp);
        _stablecoin.burn(account, amount);
        emit RedeemExecuted(account, amount, bankReference);
    }
}
