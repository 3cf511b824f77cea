//! Which policies a workload's labels select: an index by label, so that many selectors over many workloads stay cheap.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{policy::document::Labels, registry::index::is_subset};

/// Numbers of policies by namespace and one label of their selector.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    /// Those without a selector.
    whole: HashMap<Arc<str>, Vec<usize>>,
    by_label: HashMap<Label, Vec<usize>>,
}

/// A namespace, and a label's key and value there.
#[derive(Debug, Eq, Hash, PartialEq)]
struct Label(Arc<str>, Arc<str>, Arc<str>);

impl Selectors {
    /// Indexes policies in their order; each is its namespace and its selector.
    pub(super) fn new<'a>(
        policies: impl Iterator<Item = (&'a Arc<str>, Option<&'a Labels>)> + Clone,
    ) -> Self {
        let mut counts: HashMap<_, usize> = HashMap::new();
        for (namespace, selector) in policies.clone() {
            for pair in selector.into_iter().flatten() {
                *counts.entry((namespace, pair)).or_default() += 1;
            }
        }
        let mut index = Self::default();
        for (number, (namespace, selector)) in policies.enumerate() {
            // The rarest label, or else everything that says `env: prod` would be looked at for each workload of it.
            let rarest = selector.and_then(|labels| {
                labels
                    .iter()
                    .min_by_key(|pair| counts.get(&(namespace, *pair)))
            });
            let bucket = match rarest {
                Some((key, value)) => index
                    .by_label
                    .entry(Label(namespace.clone(), key.clone(), value.clone()))
                    .or_default(),
                None => index.whole.entry(namespace.clone()).or_default(),
            };
            bucket.push(number);
        }
        index
    }

    /// Policies of `namespace` without a selector, in their order.
    pub(super) fn whole(&self, namespace: &str) -> &[usize] {
        self.whole.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// Policies of `namespace` whose selector, as `selector_of` tells it, selects `labels`; in their order.
    pub(super) fn selecting<'a>(
        &self,
        namespace: &Arc<str>,
        labels: &Labels,
        selector_of: impl Fn(usize) -> Option<&'a Labels>,
    ) -> Vec<usize> {
        if self.by_label.is_empty() {
            return Vec::new();
        }
        let mut selecting: Vec<usize> = labels
            .iter()
            .filter_map(|(key, value)| {
                let label = Label(namespace.clone(), key.clone(), value.clone());
                self.by_label.get(&label)
            })
            .flatten()
            .copied()
            .filter(|number| selector_of(*number).is_some_and(|wanted| is_subset(wanted, labels)))
            .collect();
        selecting.sort_unstable();
        selecting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn a_selector_selects_what_has_all_its_labels() {
        let namespaces: [Arc<str>; 2] = ["a".into(), "b".into()];
        let policies = [
            (&namespaces[0], Some(labels(&[("app", "x"), ("env", "p")]))),
            (&namespaces[0], None),
            (&namespaces[1], Some(labels(&[("env", "p")]))),
            (&namespaces[0], Some(labels(&[("env", "p")]))),
        ];
        let given = policies
            .iter()
            .map(|(space, labels)| (*space, labels.as_ref()));
        let index = Selectors::new(given);
        let selector = |number: usize| policies[number].1.as_ref();
        let selecting = |pairs| index.selecting(&namespaces[0], &labels(pairs), selector);
        assert_eq!(selecting(&[("app", "x"), ("env", "p"), ("z", "")]), [0, 3]);
        assert_eq!(selecting(&[("env", "p")]), [3]);
        assert!(selecting(&[]).is_empty());
        assert_eq!(index.whole("a"), [1]);
        assert!(index.whole("b").is_empty());
    }
}
