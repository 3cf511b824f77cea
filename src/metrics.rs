//! Prometheus families; every label value comes from a floor-0 enum.
