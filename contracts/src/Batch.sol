// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Several calls in one transaction, all or none: baskets and requests of one block, of one transaction, of none.
contract Batch {
    struct Call {
        address target;
        bytes data;
    }

    error CallFailed(uint256 place);

    function run(Call[] calldata calls) external {
        for (uint256 place = 0; place < calls.length; place++) {
            (bool success,) = calls[place].target.call(calls[place].data);
            if (!success) revert CallFailed(place);
        }
    }
}
