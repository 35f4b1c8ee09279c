//! Telemetry: what the box says of itself: the [`board`], from which status, metrics and alarms are all read.

pub mod board;
