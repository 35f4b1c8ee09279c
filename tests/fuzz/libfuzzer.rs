//! The long run: libFuzzer around one target, named by `LAKEHEAD_FUZZ`. `make fuzz`.
#![no_main]

mod allocator;

use std::sync::LazyLock;

use lakehead::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("LAKEHEAD_FUZZ").expect("LAKEHEAD_FUZZ names a target");
    let target = *TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    // What is contained goes on; what is not aborts the process one frame further up.
    drop(std::panic::take_hook());
    allocator::warm(&target);
    target
});

fuzz_target!(|input: &[u8]| allocator::hold(&TARGET, input));
