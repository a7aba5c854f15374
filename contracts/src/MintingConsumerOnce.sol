// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {MintingConsumer} from "./MintingConsumer.sol";
import {StablecoinERC20} from "./StablecoinERC20.sol";

/// The change that we recommend to upstream: a bank reference mints once, whoever asks, for ever.
contract MintingConsumerOnce is MintingConsumer {
    mapping(bytes32 bankReference => bool yes) public isReferenceUsed;

    error BankReferenceAlreadyUsed(bytes32 bankReference);

    constructor(StablecoinERC20 stablecoin, address admin_) MintingConsumer(stablecoin, admin_) {}

    function _mint(address recipient, uint256 amount, bytes32 bankReference) internal override {
        if (isReferenceUsed[bankReference]) revert BankReferenceAlreadyUsed(bankReference);
        isReferenceUsed[bankReference] = true;
        super._mint(recipient, amount, bankReference);
    }
}
