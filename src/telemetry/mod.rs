//! Telemetry: what the box says of itself: the [`board`], from which [`report`] makes what status,
//! metrics and alarms show; the [`log`]; and the [`heartbeat`] that the watchdog listens to.

pub mod board;
pub mod headway;
pub mod heartbeat;
pub mod log;
pub mod metrics;
pub mod process;
pub mod report;
pub mod trend;
