"""The training machine, which knows no model: configs, state, step, optimiser and loop."""
