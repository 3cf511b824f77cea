//! Finds foreign nft rules that read or write bits of our mark.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::host::HostSettings;

/// One line for each chain outside our table in which a rule compares or sets mark bits of our mask. `rules` are nft's
/// JSON objects. A chain made by iptables with extensions (`xt`) shows nothing of itself to nft and is not found.
pub(in crate::host) fn mark_conflicts(settings: &HostSettings, rules: &[Value]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for rule in rules {
        let field = |name| rule.get(name).and_then(Value::as_str).unwrap_or_default();
        if field("family") == "inet" && field("table") == settings.table {
            continue;
        }
        let statements = rule.get("expr").and_then(Value::as_array);
        let bits = statements
            .into_iter()
            .flatten()
            .fold(0, |bits, one| bits | touched(one));
        if bits & settings.mark_mask != 0 {
            let (family, table, chain) = (field("family"), field("table"), field("chain"));
            lines.insert(format!(
                "nft chain {family} {table} {chain} uses mark bits {bits:#x}, which overlap the mask {:#x}",
                settings.mark_mask
            ));
        }
    }
    lines.into_iter().collect()
}

/// The bits of packet or conntrack mark that a statement compares or changes.
fn touched(statement: &Value) -> u32 {
    if let Some(compared) = statement
        .get("match")
        .and_then(|compare| compare.get("left"))
    {
        if is_mark(compared) {
            u32::MAX
        } else {
            masked(compared, "&").unwrap_or(0)
        }
    } else if let Some(change) = statement.get("mangle")
        && change.get("key").is_some_and(is_mark)
    {
        change.get("value").map_or(0, changed)
    } else {
        0
    }
}

/// Bits that `mark set <value>` may change: those or-ed in, those and-ed out, everything for any other value.
fn changed(value: &Value) -> u32 {
    let operands = |operator| {
        value
            .get(operator)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
    };
    if let Some([inner, bits]) = operands("|").or_else(|| operands("^")) {
        number(bits).map_or(u32::MAX, |bits| changed(inner) | bits)
    } else if let Some([inner, kept]) = operands("&") {
        number(kept).map_or(u32::MAX, |kept| changed(inner) | !kept)
    } else if is_mark(value) {
        0
    } else {
        u32::MAX
    }
}

fn masked(expression: &Value, operator: &str) -> Option<u32> {
    let operands = expression.get(operator)?.as_array()?;
    let [inner, mask] = operands.as_slice() else {
        return None;
    };
    is_mark(inner).then(|| number(mask).unwrap_or(u32::MAX))
}

fn is_mark(expression: &Value) -> bool {
    ["meta", "ct"].iter().any(|kind| {
        let key = expression.get(kind).and_then(|inner| inner.get("key"));
        key.and_then(Value::as_str) == Some("mark")
    })
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|value| u32::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_bits_that_a_rule_compares_or_changes_count() {
        let mark = json!({"meta": {"key": "mark"}});
        let set = |value| json!({"mangle": {"key": mark, "value": value}});
        let compare = |left| json!({"match": {"op": "==", "left": left, "right": 1}});
        for (statement, bits) in [
            (set(json!(7)), u32::MAX),
            (set(json!({"|": [mark, 0x4000]})), 0x4000),
            (set(json!({"&": [mark, 0xffff_bfff_u32]})), 0x4000),
            (
                set(json!({"^": [{"&": [mark, 0xffff_00ff_u32]}, 0x100]})),
                0xff00,
            ),
            (set(json!({"ct": {"key": "mark"}})), 0),
            (set(json!({"|": [mark, mark]})), u32::MAX),
            (compare(mark.clone()), u32::MAX),
            (compare(json!({"&": [mark, 0x8000]})), 0x8000),
            (compare(json!({"meta": {"key": "l4proto"}})), 0),
            (json!({"counter": {"packets": 1}}), 0),
        ] {
            assert_eq!(touched(&statement), bits, "{statement}");
        }
    }
}
