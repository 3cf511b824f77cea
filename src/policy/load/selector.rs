//! The selector of the kinds of security.istio.io (policy.md 2.4).

use super::{read::Map, report::Report};
use crate::policy::{
    diagnostic::{Diagnostic, codes},
    document::Labels,
};

/// Labels of `selector.matchLabels`; nothing when it selects nothing in particular.
pub(super) fn read(spec: &Map<'_, '_>, report: &mut Report<'_>) -> Option<Labels> {
    let node = spec.get("selector")?;
    let selector = report.map(node, "`selector`", &["matchLabels"])?;
    let labels = selector
        .get("matchLabels")
        .map(|node| report.labels(node, "matchLabels"))
        .unwrap_or_default();
    if labels.is_empty() {
        let message = "a selector without labels is ignored: every workload is meant";
        let found = Diagnostic::new(&codes::EMPTY_SELECTOR, message);
        report.add(node.mark, found.with_label("expected `matchLabels`"));
        return None;
    }
    Some(labels)
}
