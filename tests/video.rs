//! Tests of video.
