//! Policy: text to resources to one compiled value that answers every question.

mod analyze;
pub mod compare;
pub mod compiled;
pub mod diagnostic;
pub mod document;
pub mod explain;
pub mod help;
pub mod load;
pub mod render;
pub mod schema;
pub mod settings;
pub mod steering;
pub mod suppress;
pub mod tls_check;

pub use compiled::{
    Compiled, Considered, Decision, EgressDecision, IngressDecision, Question, ReasonCode, RuleRef,
    Step, Why,
};
pub use diagnostic::{Diagnostic, Severity, SourceFile};
pub use document::Resources;
pub use explain::Explanation;
pub use render::render;
pub use settings::{HostFacts, MeshSettings, Mode};
pub use steering::Steering;
