//! What is asked of the compiled policy, and the shape of the answer.

use std::net::IpAddr;

use serde::Serialize;

use crate::policy::{
    RuleRef,
    compiled::{outcome::Outcome, reason::ReasonCode},
};

/// A flow: who sends what where.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Question {
    /// The address that opens the flow.
    pub source: IpAddr,
    /// The address that it goes to.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` for a packet without ports.
    pub port: Option<u16>,
}

/// How a flow ends up, and why.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Decision {
    /// How.
    pub outcome: Outcome,
    /// Why, as a code.
    pub code: ReasonCode,
}

impl From<ReasonCode> for Decision {
    fn from(code: ReasonCode) -> Self {
        Self {
            outcome: code.outcome(),
            code,
        }
    }
}

/// What a rule was considered for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What the client must use: DestinationRule.
    ClientRule,
    /// What the server accepts: PeerAuthentication, Policy, MeshPolicy.
    ServerMode,
    /// Who may call: AuthorizationPolicy.
    Authorization,
}

/// A rule that was considered on the way to a decision.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Considered {
    /// For what.
    pub step: Step,
    /// The rule, and the setting of it that counts.
    pub rule: RuleRef,
    /// It decided its step.
    pub won: bool,
    /// Why it won or lost: a clause without capital and full stop.
    pub why: String,
}
