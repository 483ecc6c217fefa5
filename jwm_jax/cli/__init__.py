"""The `jwm` command: one file per verb, imported only when the verb is chosen."""
