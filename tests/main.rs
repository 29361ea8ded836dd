//! Tests that cross a crate border, a module per topic.
//!
//! Tests that need the real models are `#[ignore]`d, so that a run without them counts them as ignored; run them with
//! `CALIPER_MODELS` (folder of the models) and `CALIPER_SHARED` (folder of texts and goldens) set, and `--ignored`.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

mod arrows;
mod canonical;
mod doctor;
mod goldens;
mod hub;
#[path = "../model/tests/support/hub_server.rs"]
mod hub_server;
mod interop;
mod interop_gguf;
mod perplexity;
mod real_models;
mod tasks;
mod tokenizers;
