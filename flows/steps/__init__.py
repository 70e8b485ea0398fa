"""Pure decisions: no clock, log, environment or network. What comes out depends on what goes in."""
