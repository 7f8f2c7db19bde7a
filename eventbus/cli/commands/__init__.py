"""One module per command; see `eventbus.cli.program.Commands`."""
