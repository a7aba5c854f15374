// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {MintingConsumer} from "./MintingConsumer.sol";
import {MintingConsumerOnce} from "./MintingConsumerOnce.sol";
import {StablecoinERC20} from "./StablecoinERC20.sol";

/// Creates baskets: a token that belongs to its admin, and the consumer that mints it.
contract BasketFactory {
    /// Which consumer new baskets get: upstream's, or the one that mints a bank reference once.
    bool public immutable mintsReferencesOnce;

    event BasketCreated(
        address indexed creator,
        address indexed admin,
        address indexed stablecoin,
        address mintingConsumer,
        string name,
        string symbol
    );
    event MintRequested(
        address indexed stablecoin,
        address indexed requester,
        address indexed beneficiary,
        uint256 amount,
        bytes32 bankReference
    );

    constructor(bool mintsReferencesOnce_) {
        mintsReferencesOnce = mintsReferencesOnce_;
    }

    function createBasket(string calldata name, string calldata symbol, address admin)
        external
        returns (address stablecoin, address consumer)
    {
        StablecoinERC20 token = new StablecoinERC20(name, symbol);
        stablecoin = address(token);
        consumer = mintsReferencesOnce
            ? address(new MintingConsumerOnce(token, admin))
            : address(new MintingConsumer(token, admin));
        token.grantMintRole(consumer);
        token.grantBurnRole(consumer);
        token.transferOwnership(admin);
        emit BasketCreated(msg.sender, admin, stablecoin, consumer, name, symbol);
    }

    /// The other form of a request, in which the basket is a field.  Nothing is checked here either.
    function requestMint(address stablecoin, address beneficiary, uint256 amount, bytes32 bankReference) external {
        emit MintRequested(stablecoin, msg.sender, beneficiary, amount, bankReference);
    }
}
