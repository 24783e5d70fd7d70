"""The dashboard: defined once, written as Grafana JSON, drawn as a picture, checked against a Prometheus."""
