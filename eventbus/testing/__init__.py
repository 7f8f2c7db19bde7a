"""For tests of what is built on eventbus: a pytest plugin with transports as fixtures, and what waits for the end of the work.

```python
async def test_a_registered_book_is_announced(transport: MemoryTransport, smtp: FakeSmtp) -> None:
    async with InMemoryLibrary(transport=transport) as uow:
        await bus.handle(RegisterBook(id=DUNE, title="Dune"), uow)
        await uow.commit()

    await drain(replace(mailer, transport=transport))

    assert ["new on the shelf: Dune"] == smtp.sent
```

Installed with the extra ``testing``, the plugin brings the fixtures `transport`, `redis_transport`, `redis_server`, `live_transport` and
`faults` (`eventbus.testing.plugin`). `TransportContract` is what every transport promises, as tests to run over one of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventbus.testing.waiting import drain, wait_until

if TYPE_CHECKING:
    from eventbus.testing.contract import TransportContract

__all__ = ["TransportContract", "drain", "wait_until"]


def __getattr__(name: str) -> Any:
    """The contract needs pytest, which is imported when somebody asks for it; and its asserts explain themselves as a test's do."""
    if name == "TransportContract":
        import pytest

        pytest.register_assert_rewrite("eventbus.testing.contract")
        from eventbus.testing.contract import TransportContract

        return TransportContract

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
