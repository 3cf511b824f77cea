//! Makes a story shorter as long as the same invariant breaks.

use crate::step::{Kind, Step, Story, Talk};

/// Runs of one search.
const TRIES: usize = 500;

/// The shortest story that removals of steps, and then simpler steps, find.
pub(crate) fn shrink(story: &Story, mut breaks: impl FnMut(&Story) -> bool) -> Story {
    let mut best = story.clone();
    let mut tries = 0;
    let mut is_better = |candidate: &Story| {
        tries += 1;
        tries <= TRIES && breaks(candidate)
    };
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < best.steps.len() {
            let mut candidate = best.clone();
            candidate.steps.drain(at..(at + size).min(best.steps.len()));
            match is_better(&candidate) {
                true => best = candidate,
                false => at += size,
            }
        }
        size /= 2;
    }
    for at in 0..best.steps.len() {
        while let Some(candidate) = simpler(&best, at)
            .into_iter()
            .find(|story| is_better(story))
        {
            best = candidate;
        }
    }
    best
}

/// The story with a simpler step in one place.
fn simpler(story: &Story, at: usize) -> Vec<Story> {
    let steps = match story.steps[at].clone() {
        Step::Send(talk) => simpler_talks(talk).map(Step::Send).to_vec(),
        Step::Wait { ms } => vec![Step::Wait { ms: ms / 2 }],
        Step::Clock { host, by } => vec![Step::Clock { host, by: by / 2 }],
        Step::Clean
        | Step::Cut { .. }
        | Step::Link(_)
        | Step::Lose { .. }
        | Step::Policy { .. }
        | Step::Restart { .. }
        | Step::Roam { .. }
        | Step::Rotate { .. }
        | Step::Spoof { .. }
        | Step::Trust { .. }
        | Step::Withdraw { .. } => Vec::new(),
    };
    let steps = steps
        .into_iter()
        .filter(|step| *step != story.steps[at] && !is_nothing(step));
    let with = |step| {
        let mut simpler = story.clone();
        simpler.steps[at] = step;
        simpler
    };
    steps.map(with).collect()
}

fn simpler_talks(talk: Talk) -> [Talk; 5] {
    let (count, size) = (talk.count / 2, talk.size.min(1_000));
    [
        Talk { count: 1, ..talk },
        Talk { count, ..talk },
        Talk { size: 100, ..talk },
        Talk { v6: false, ..talk },
        Talk {
            kind: Kind::Udp,
            size,
            ..talk
        },
    ]
}

const fn is_nothing(step: &Step) -> bool {
    matches!(
        step,
        Step::Send(Talk { count: 0, .. }) | Step::Wait { ms: 0 } | Step::Clock { by: 0, .. }
    )
}
