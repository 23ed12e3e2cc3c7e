//! The token-reward scoring server.

fn main() {}
