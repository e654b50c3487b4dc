//! The integration tests: one module per behaviour, all against real servers on real ports.

mod sandbox;
