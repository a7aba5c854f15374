"""The contracts do on a real chain what the protocol says of upstream's, the openings included."""

import pytest
from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from service.demo.contracts import (
    ADMIN,
    TRANSMITTER,
    Basket,
    Call,
    ChainRefused,
    DevChain,
    Log,
    Receipt,
    System,
    TransactionReverted,
    balance_of,
    batch_call,
    call,
    create_basket,
    create_basket_call,
    deliver,
    deploy_system,
    mint_report,
    next_basket,
    raw_report,
    report_call,
    request_mint,
    request_mint_at_factory_call,
    request_mint_call,
    total_supply,
)

USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
WORKFLOW_ID = bytes(range(32))
REFERENCE = b"DEP-2026-0001".ljust(32, b"\0")
WEI = 10**18
REPORT_ID = b"\x00\x01"

BASKET_CREATED = keccak(text="BasketCreated(address,address,address,address,string,string)")
TOKEN_FORM = keccak(text="MintRequested(address,address,uint256,bytes32)")
FACTORY_FORM = keccak(text="MintRequested(address,address,address,uint256,bytes32)")
MINT_INSTRUCTION_RECEIVED = keccak(text="MintInstructionReceived(address,uint256,bytes32,uint256)")
MINT_EXECUTED = keccak(text="MintExecuted(address,uint256,bytes32)")
REDEEM_EXECUTED = keccak(text="RedeemExecuted(address,uint256,bytes32)")
TRANSFER = keccak(text="Transfer(address,address,uint256)")
REPORT_PROCESSED = keccak(text="ReportProcessed(address,bytes32,bytes2,bool)")
POLICY_RUN_REJECTED = bytes.fromhex("fbdad4f4")
ALREADY_ATTEMPTED = bytes.fromhex("a53dc8ca")


def execution(number: int) -> bytes:
    return number.to_bytes(32, "big")


def padded(address: bytes) -> bytes:
    return address.rjust(32, b"\0")


def topics_of(receipt: Receipt) -> list[bytes]:
    return [log.topics[0] for log in receipt.logs]


def result_of(receipt: Receipt) -> bool:
    return int.from_bytes(receipt.logs[-1].data, "big") == 1


async def deliver_mint(
    chain: DevChain, system: System, receiver: bytes, *, number: int = 1, reference: bytes = REFERENCE
) -> Receipt:
    report = mint_report(recipient=USER, amount_wei=5 * WEI, bank_reference=reference)
    return await deliver(
        chain, system.forwarder, receiver, workflow_id=WORKFLOW_ID, execution_id=execution(number), report=report
    )


async def transmission_state(chain: DevChain, system: System, receiver: bytes, number: int = 1) -> int:
    question = call(
        system.forwarder, "getTransmissionInfo(address,bytes32,bytes2)", receiver, execution(number), REPORT_ID
    )
    ((_, state, *_rest),) = await chain.ask(question, "(bytes32,uint8,address,bool,bool,uint80)")
    return int(state)


async def set_policy_rejects(chain: DevChain, consumer: bytes, *, rejects: bool) -> None:
    await chain.transact(call(consumer, "setPolicyRejects(bool)", rejects))


async def test_a_basket_is_announced_with_its_consumer_wired_and_its_admin_as_owner(
    chain: DevChain, system: System
) -> None:
    receipt = await chain.transact(
        create_basket_call(system.factory, name="Euro Token", symbol="EURT", admin=USER), sender=TRANSMITTER
    )
    log = receipt.logs[-1]
    consumer, name, symbol = decode(["address", "string", "string"], log.data)
    token = log.topics[3][12:]
    assert (log.address, log.topics[:3]) == (system.factory, (BASKET_CREATED, padded(TRANSMITTER), padded(USER)))
    assert (name, symbol) == ("Euro Token", "EURT")
    consumer_address = bytes.fromhex(consumer[2:])
    assert await chain.ask(call(token, "isMinter(address)", consumer_address), "bool") == (True,)
    assert await chain.ask(call(token, "owner()"), "address") == (USER,)
    assert await chain.ask(call(token, "decimals()"), "uint8") == (18,)
    assert await chain.ask(call(token, "symbol()"), "string") == ("EURT",)
    assert await chain.ask(call(consumer_address, "getStablecoin()"), "address") == (token,)


async def test_names_need_not_be_utf8(chain: DevChain, system: System) -> None:
    receipt = await chain.transact(create_basket_call(system.factory, name=b"\xff\x00\xfe", symbol=b"\xc3"))
    _, name, symbol = decode(["address", "bytes", "bytes"], receipt.logs[-1].data)
    assert (name, symbol) == (b"\xff\x00\xfe", b"\xc3")


async def test_anyone_may_request_anything_of_a_token(chain: DevChain, basket: Basket) -> None:
    for beneficiary, amount in ((USER, 5 * WEI), (bytes(20), 0), (USER, 2**256 - 1)):
        receipt = await request_mint(
            chain,
            basket.token,
            beneficiary=beneficiary,
            amount_wei=amount,
            bank_reference=REFERENCE,
            requester=TRANSMITTER,
        )
        assert receipt.logs == (
            Log(
                address=basket.token,
                topics=(TOKEN_FORM, padded(TRANSMITTER), padded(beneficiary), REFERENCE),
                data=amount.to_bytes(32, "big"),
                index=0,
            ),
        )


async def test_the_factory_emits_the_other_form_of_a_request(chain: DevChain, system: System, basket: Basket) -> None:
    receipt = await chain.transact(
        request_mint_at_factory_call(
            system.factory, token=basket.token, beneficiary=USER, amount_wei=7, bank_reference=REFERENCE
        )
    )
    (log,) = receipt.logs
    assert (log.address, log.topics) == (
        system.factory,
        (FACTORY_FORM, padded(basket.token), padded(ADMIN), padded(USER)),
    )
    assert log.data == encode(["uint256", "bytes32"], [7, REFERENCE])


async def test_only_minters_mint_and_the_owner_may_take_the_role_away(
    chain: DevChain, system: System, basket: Basket
) -> None:
    with pytest.raises(ChainRefused):
        await chain.ask(call(basket.token, "mint(address,uint256)", USER, 1))
    revoked = await chain.transact(call(basket.token, "revokeMintRole(address)", basket.consumer))
    assert revoked.logs[0].topics == (keccak(text="MintRoleRevoked(address)"), padded(basket.consumer))
    assert result_of(await deliver_mint(chain, system, basket.consumer)) is False


async def test_a_delivery_is_instruction_transfer_execution_and_report_in_this_order(
    chain: DevChain, system: System, basket: Basket
) -> None:
    receipt = await deliver_mint(chain, system, basket.consumer)
    assert topics_of(receipt) == [MINT_INSTRUCTION_RECEIVED, TRANSFER, MINT_EXECUTED, REPORT_PROCESSED]
    assert receipt.logs[2] == Log(
        address=basket.consumer,
        topics=(MINT_EXECUTED, padded(USER), REFERENCE),
        data=(5 * WEI).to_bytes(32, "big"),
        index=2,
    )
    # The report id is padded on the right, as bytes2 is.
    assert receipt.logs[3].topics == (
        REPORT_PROCESSED,
        padded(basket.consumer),
        execution(1),
        REPORT_ID.ljust(32, b"\0"),
    )
    assert result_of(receipt) is True
    assert await balance_of(chain, basket.token, USER) == await total_supply(chain, basket.token) == 5 * WEI


async def test_redeeming_burns_what_was_minted(chain: DevChain, system: System, basket: Basket) -> None:
    await deliver_mint(chain, system, basket.consumer)
    redeem = encode(["uint8", "address", "uint256", "bytes32"], [2, USER, 2 * WEI, REFERENCE])
    receipt = await deliver(
        chain, system.forwarder, basket.consumer, workflow_id=WORKFLOW_ID, execution_id=execution(2), report=redeem
    )
    assert REDEEM_EXECUTED in topics_of(receipt)
    assert await total_supply(chain, basket.token) == 3 * WEI


async def test_a_delivered_report_is_refused_a_second_time(chain: DevChain, system: System, basket: Basket) -> None:
    await deliver_mint(chain, system, basket.consumer)
    with pytest.raises(TransactionReverted):
        await deliver_mint(chain, system, basket.consumer)
    report = mint_report(recipient=USER, amount_wei=5 * WEI, bank_reference=REFERENCE)
    raw = raw_report(report, workflow_id=WORKFLOW_ID, execution_id=execution(1))
    with pytest.raises(ChainRefused) as refused:
        await chain.ask(report_call(system.forwarder, receiver=basket.consumer, raw=raw))
    assert refused.value.data[:4] == ALREADY_ATTEMPTED
    assert await transmission_state(chain, system, basket.consumer) == 1


async def test_a_failed_delivery_succeeds_as_a_transaction_and_can_be_replayed_to_true(
    chain: DevChain, system: System, basket: Basket
) -> None:
    await set_policy_rejects(chain, basket.consumer, rejects=True)
    for _ in range(2):
        receipt = await deliver_mint(chain, system, basket.consumer)
        assert topics_of(receipt) == [REPORT_PROCESSED]
        assert result_of(receipt) is False
    assert await transmission_state(chain, system, basket.consumer) == 3
    await set_policy_rejects(chain, basket.consumer, rejects=False)
    assert result_of(await deliver_mint(chain, system, basket.consumer)) is True
    assert await total_supply(chain, basket.token) == 5 * WEI


@pytest.mark.parametrize("kind", ["an account without code", "a contract that is no receiver"])
async def test_what_is_no_receiver_is_refused_for_ever(
    chain: DevChain, system: System, basket: Basket, kind: str
) -> None:
    receiver = USER if kind == "an account without code" else basket.token
    assert await transmission_state(chain, system, receiver) == 0
    assert result_of(await deliver_mint(chain, system, receiver)) is False
    assert await transmission_state(chain, system, receiver) == 2
    with pytest.raises(TransactionReverted):
        await deliver_mint(chain, system, receiver)


async def test_a_delivery_with_too_little_gas_reverts_and_may_come_again(
    chain: DevChain, system: System, basket: Basket
) -> None:
    report = mint_report(recipient=USER, amount_wei=1, bank_reference=REFERENCE)
    raw = raw_report(report, workflow_id=WORKFLOW_ID, execution_id=execution(1))
    delivery = report_call(system.forwarder, receiver=basket.consumer, raw=raw)
    with pytest.raises(TransactionReverted):
        await chain.transact(delivery, gas=100_000)
    assert result_of(await chain.transact(delivery)) is True


async def test_the_receiver_gets_the_second_part_of_the_header_and_the_bare_report(
    chain: DevChain, system: System, basket: Basket
) -> None:
    report = mint_report(recipient=USER, amount_wei=1, bank_reference=REFERENCE)
    raw = raw_report(report, workflow_id=WORKFLOW_ID, execution_id=execution(9))
    assert (raw[0], raw[1:33], raw[45:77], raw[107:109], raw[109:]) == (1, execution(9), WORKFLOW_ID, REPORT_ID, report)
    receipt = await chain.transact(report_call(system.forwarder, receiver=basket.consumer, raw=raw))
    trace = await chain.rpc("debug_traceTransaction", "0x" + receipt.tx_hash.hex(), {"tracer": "callTracer"})
    (received,) = [inner for inner in trace["calls"] if inner["type"] == "CALL"]
    given = bytes.fromhex(received["input"][2:])
    assert given == call(basket.consumer, "onReport(bytes,bytes)", raw[45:109], report).data


async def test_a_report_without_a_whole_header_is_refused(chain: DevChain, system: System, basket: Basket) -> None:
    with pytest.raises(ChainRefused):
        await chain.ask(report_call(system.forwarder, receiver=basket.consumer, raw=bytes(108)))


async def test_a_policy_rejection_says_why_to_who_asks(chain: DevChain, basket: Basket) -> None:
    await set_policy_rejects(chain, basket.consumer, rejects=True)
    report = mint_report(recipient=USER, amount_wei=1, bank_reference=REFERENCE)
    with pytest.raises(ChainRefused) as refused:
        await chain.ask(call(basket.consumer, "onReport(bytes,bytes)", b"", report))
    assert refused.value.data[:4] == POLICY_RUN_REJECTED
    _, reason, _ = decode(["address", "string", "(bytes4,address,bytes,bytes)"], refused.value.data[4:])
    assert reason == "the policy rejects"


async def test_anyone_mints_past_the_forwarder_as_upstream_lets_them(chain: DevChain, basket: Basket) -> None:
    report = mint_report(recipient=USER, amount_wei=WEI, bank_reference=REFERENCE)
    direct: list[Call] = [
        call(basket.consumer, "processMintReport(bytes)", report),
        call(basket.consumer, "onReport(bytes,bytes)", b"", report),
    ]
    for what in direct:
        receipt = await chain.transact(what, sender=TRANSMITTER)
        assert topics_of(receipt) == [MINT_INSTRUCTION_RECEIVED, TRANSFER, MINT_EXECUTED]


async def test_the_plain_consumer_mints_a_reference_twice(chain: DevChain, system: System, basket: Basket) -> None:
    for number in (1, 2):
        assert result_of(await deliver_mint(chain, system, basket.consumer, number=number)) is True
    assert await total_supply(chain, basket.token) == 10 * WEI


async def test_the_once_consumer_refuses_a_used_reference_and_takes_another(chain: DevChain) -> None:
    system = await deploy_system(chain, factory="once")
    basket = await create_basket(chain, system.factory, name="Once", symbol="ONCE")
    assert result_of(await deliver_mint(chain, system, basket.consumer, number=1)) is True
    assert result_of(await deliver_mint(chain, system, basket.consumer, number=2)) is False
    assert result_of(await deliver_mint(chain, system, basket.consumer, number=3, reference=bytes(32))) is True
    assert await total_supply(chain, basket.token) == 10 * WEI


async def test_one_transaction_creates_a_basket_and_requests_equal_mints_in_it(chain: DevChain, system: System) -> None:
    basket = await next_basket(chain, system.factory)
    request = request_mint_call(basket.token, beneficiary=USER, amount_wei=1, bank_reference=REFERENCE)
    creation = create_basket_call(system.factory, name="New", symbol="NEW")
    receipt = await chain.transact(batch_call(system.batch, [creation, request, request]))
    assert topics_of(receipt)[-3:] == [BASKET_CREATED, TOKEN_FORM, TOKEN_FORM]
    assert receipt.logs[-1].address == basket.token
    assert receipt.logs[-1].topics[1] == padded(system.batch)


async def test_a_batch_with_a_refused_call_leaves_no_logs(chain: DevChain, system: System, basket: Basket) -> None:
    request = request_mint_call(basket.token, beneficiary=USER, amount_wei=1, bank_reference=REFERENCE)
    refused = call(basket.token, "mint(address,uint256)", USER, 1)
    with pytest.raises(TransactionReverted) as reverted:
        await chain.transact(batch_call(system.batch, [request, refused]))
    receipt = await chain.receipt(reverted.value.tx_hash)
    assert receipt is not None
    assert (receipt.succeeded, receipt.logs) == (False, ())


async def test_a_reorg_mines_the_same_transaction_again_at_another_log_index(chain: DevChain, basket: Basket) -> None:
    before = await request_mint(
        chain, basket.token, beneficiary=USER, amount_wei=1, bank_reference=REFERENCE, requester=TRANSMITTER
    )
    other = request_mint_call(basket.token, beneficiary=USER, amount_wei=2, bank_reference=bytes(32))
    await chain.reorg(1, [(other, 0), (await chain.raw_transaction(before.tx_hash), 0)])
    after = await chain.receipt(before.tx_hash)
    assert after is not None
    assert (before.block_number, before.logs[0].index) == (after.block_number, 0)
    assert after.logs[0].index == 1
    assert after.block_hash != before.block_hash
    assert after.logs[0].topics == before.logs[0].topics


async def test_a_reorg_takes_what_is_not_mined_again(chain: DevChain, basket: Basket) -> None:
    request = await request_mint(chain, basket.token, beneficiary=USER, amount_wei=1, bank_reference=REFERENCE)
    head = await chain.head_number()
    await chain.reorg(1)
    assert (await chain.receipt(request.tx_hash), await chain.head_number()) == (None, head)


async def test_after_a_reorg_another_basket_can_have_the_address(chain: DevChain, system: System) -> None:
    lost = await create_basket(chain, system.factory, name="Lost", symbol="LOST")
    await chain.reorg(1)
    found = await create_basket(chain, system.factory, name="Found", symbol="FOUND")
    assert found == lost
    assert await chain.ask(call(found.token, "symbol()"), "string") == ("FOUND",)


async def test_without_automining_requests_wait_for_the_block_that_is_mined_for_them(
    chain: DevChain, basket: Basket
) -> None:
    await chain.set_automine(enabled=False)
    request = request_mint_call(basket.token, beneficiary=USER, amount_wei=1, bank_reference=REFERENCE)
    kept, dropped = [await chain.send(request, sender=requester) for requester in (ADMIN, TRANSMITTER)]
    assert await chain.receipt(kept) is None
    await chain.drop_transaction(dropped)
    await chain.mine()
    assert await chain.receipt(kept) is not None
    assert await chain.receipt(dropped) is None


async def test_a_restored_snapshot_forgets_what_came_after(chain: DevChain, system: System, basket: Basket) -> None:
    snapshot = await chain.snapshot()
    await deliver_mint(chain, system, basket.consumer)
    await chain.restore(snapshot)
    assert await total_supply(chain, basket.token) == 0
