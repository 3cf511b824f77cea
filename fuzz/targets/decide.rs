//! Bytes become a small mesh and questions about it; matcher and judge have to agree (`tests/policy_oracle.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "a disagreement ends the run")]
#![expect(dead_code, reason = "the judge serves the tests too, and not all of it is needed here")]

#[path = "../../tests/oracle/all.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use oracle::{
    check::{compare, compile, told},
    choices::Choices,
    generate,
    registry::Known,
};

fuzz_target!(|bytes: &[u8]| {
    let (mesh, questions) = generate::mesh(&mut Choices::Bytes(bytes), 4);
    let compiled = compile(&mesh).unwrap();
    let known = Known::new(&mesh.resources, &mesh.mesh, &mesh.facts);
    for question in &questions {
        if compare(&compiled, &known, question).is_err() {
            panic!("{}", told(mesh, question));
        }
    }
});
