//! The kept inputs, again; and that the fuzzer finds what it looks for.

use afterimage_fuzz::targets::{self, Target};
use afterimage_fuzz::{corpus, tries};
use std::time::Duration;

#[test]
fn no_kept_input_breaks_a_claim() {
    for target in targets::all() {
        let inputs = tries::inputs(&target).unwrap();
        assert!(!inputs.is_empty(), "{} has no example", target.name);
        for input in inputs {
            if let Err(why) = tries::try_one(&target, &input) {
                panic!("{}: {why}: {}", target.name, corpus::to_hex(&input));
            }
        }
    }
}

#[test]
fn a_decoder_that_breaks_is_found_and_its_input_given() {
    fn broken(input: &[u8]) {
        assert!(!input.starts_with(b"ab") || input.len() < 4, "broken");
    }
    let target =
        Target { name: "planted", examples: || vec![b"ab".to_vec()], words: &[], run: broken };
    let outcome = tries::fuzz(&target, Duration::from_secs(20), 1).unwrap();
    let (input, why) = outcome.failure.expect("it was not found");
    assert!(why.contains("broken") && input.starts_with(b"ab"));
    let text = corpus::to_hex(&input);
    assert_eq!(corpus::from_hex(&text).unwrap(), input);
}
