//! Video in and out, the only place that names ffmpeg.
