"""What tells people that a run is ill, and of what: heartbeats, hang reports, non-finite steps, spikes."""
