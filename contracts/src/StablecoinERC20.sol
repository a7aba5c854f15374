// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// One basket's token: an ERC-20 that only minters mint, and on which anyone may ask for a mint.
contract StablecoinERC20 {
    string public name;
    string public symbol;
    uint8 public constant decimals = 18;

    address public owner;
    uint256 public totalSupply;
    mapping(address account => uint256 amount) public balanceOf;
    mapping(address account => mapping(address spender => uint256 amount)) public allowance;
    mapping(address account => bool yes) public isMinter;
    mapping(address account => bool yes) public isBurner;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);
    event MintRequested(
        address indexed requester, address indexed beneficiary, uint256 amount, bytes32 indexed bankReference
    );
    event MintRoleGranted(address indexed minter);
    event MintRoleRevoked(address indexed minter);
    event BurnRoleGranted(address indexed burner);
    event BurnRoleRevoked(address indexed burner);
    event OwnershipTransferred(address indexed from, address indexed to);

    error OnlyOwner(address sender);
    error OnlyMinter(address sender);
    error OnlyBurner(address sender);
    error ZeroAddress();
    error InsufficientBalance(address account, uint256 balance, uint256 needed);
    error InsufficientAllowance(address spender, uint256 allowed, uint256 needed);

    modifier onlyOwner() {
        if (msg.sender != owner) revert OnlyOwner(msg.sender);
        _;
    }

    constructor(string memory name_, string memory symbol_) {
        name = name_;
        symbol = symbol_;
        owner = msg.sender;
        emit OwnershipTransferred(address(0), msg.sender);
    }

    /// Ask for a mint against a bank deposit.  Nothing is checked: what may be minted is decided off chain.
    function requestMint(address beneficiary, uint256 amount, bytes32 bankReference) external {
        emit MintRequested(msg.sender, beneficiary, amount, bankReference);
    }

    function mint(address to, uint256 amount) external {
        if (!isMinter[msg.sender]) revert OnlyMinter(msg.sender);
        if (to == address(0)) revert ZeroAddress();
        totalSupply += amount;
        balanceOf[to] += amount;
        emit Transfer(address(0), to, amount);
    }

    function burn(address from, uint256 amount) external {
        if (!isBurner[msg.sender]) revert OnlyBurner(msg.sender);
        _take(from, amount);
        totalSupply -= amount;
        emit Transfer(from, address(0), amount);
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        _move(msg.sender, to, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        if (allowed < amount) revert InsufficientAllowance(msg.sender, allowed, amount);
        if (allowed != type(uint256).max) allowance[from][msg.sender] = allowed - amount;
        _move(from, to, amount);
        return true;
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        emit Approval(msg.sender, spender, amount);
        return true;
    }

    function grantMintRole(address minter) external onlyOwner {
        isMinter[minter] = true;
        emit MintRoleGranted(minter);
    }

    function revokeMintRole(address minter) external onlyOwner {
        isMinter[minter] = false;
        emit MintRoleRevoked(minter);
    }

    function grantBurnRole(address burner) external onlyOwner {
        isBurner[burner] = true;
        emit BurnRoleGranted(burner);
    }

    function revokeBurnRole(address burner) external onlyOwner {
        isBurner[burner] = false;
        emit BurnRoleRevoked(burner);
    }

    function transferOwnership(address to) external onlyOwner {
        if (to == address(0)) revert ZeroAddress();
        emit OwnershipTransferred(owner, to);
        owner = to;
    }

    function _move(address from, address to, uint256 amount) private {
        if (to == address(0)) revert ZeroAddress();
        _take(from, amount);
        balanceOf[to] += amount;
        emit Transfer(from, to, amount);
    }

    function _take(address from, uint256 amount) private {
        uint256 balance = balanceOf[from];
        if (balance < amount) revert InsufficientBalance(from, balance, amount);
        balanceOf[from] = balance - amount;
    }
}
