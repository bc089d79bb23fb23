"""The commands, by what they are for. `cli.app` loads only the module whose command was asked for."""
