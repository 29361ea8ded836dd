//! Small random models on disk, and the slow decoder they are held against.

pub mod reference;
pub mod small_model;
