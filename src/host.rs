//! What identun changes on the machine, and how it is undone.
