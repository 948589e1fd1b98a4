"""Records of a campaign as they are shown: rounds, acts of people, sealed suites, wall time, feedback."""
