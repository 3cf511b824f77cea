//! The independent judge of the policy matcher: what policy.md says, in plain loops over the resources. It shares no code
//! with the matcher but the shapes of the resources; slow on purpose, and easy to hold against the text.

pub(crate) mod authorization;
pub(crate) mod check;
pub(crate) mod choices;
pub(crate) mod generate;
pub(crate) mod judge;
pub(crate) mod mode;
pub(crate) mod mutate;
pub(crate) mod promise;
pub(crate) mod registry;
pub(crate) mod rule;
pub(crate) mod shrink;
pub(crate) mod text;
