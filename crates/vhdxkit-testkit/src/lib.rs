//! Builds VHDX images for tests.
