"""A message, a handler, and the bus that brings them together."""

import anyio

from eventbus import Command, MessageBus, UnitOfWork


class Greet(Command):
    name: str


bus = MessageBus()


@bus.listen
async def greet(command: Greet) -> str:
    return f"Hello, {command.name}!"


async def main() -> None:
    async with UnitOfWork() as uow:
        print(await bus.handle(Greet(name="Ada"), uow))
        await uow.commit()


anyio.run(main)

# Output:
# Hello, Ada!
