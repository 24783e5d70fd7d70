"""Every alert fires under a provoked fault and is silent otherwise: promtool, rules, made-up series."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monitored import CONFIG, promtool

PROOFS = sorted((Path(__file__).parent / "alerts").glob("*.yml"))
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((CONFIG / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


def test_configuration_and_rules_are_valid() -> None:
    said = promtool("check", "config", "--lint=all", "--lint-fatal", CONFIG / "prometheus.yml")
    assert said.count("SUCCESS") == 4, said  # the file, the list of its rule files, each of the two


@pytest.mark.parametrize("proof", PROOFS, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_silent_as_told(proof: Path) -> None:
    promtool("test", "rules", proof)


def test_promtool_refuses_a_wrong_proof(tmp_path: Path) -> None:
    proof = yaml.safe_load(PROOFS[0].read_text())
    proof["rule_files"] = [str((PROOFS[0].parent / name).resolve()) for name in proof["rule_files"]]
    fired = next(check for check in proof["tests"][0]["promql_expr_test"] if check["exp_samples"])
    fired["exp_samples"] = []
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(proof))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", tmp_path / "wrong.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_proved_to_fire_and_to_be_silent(alert: str) -> None:
    checks = [
        check
        for proof in PROOFS
        for test in yaml.safe_load(proof.read_text())["tests"]
        for check in test["promql_expr_test"]
        if check["expr"].startswith(("ALERTS", "count_over_time(ALERTS"))
    ]
    fired = [sample["labels"] for check in checks for sample in check["exp_samples"]]
    assert any(f'alertname="{alert}", alertstate="firing"' in labels for labels in fired)
    silent = [check["expr"] for check in checks if not check["exp_samples"]]
    assert any(f'"{alert}"' in expr or "alertname" not in expr for expr in silent)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_saw_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert all(len(text) > 20 for text in rule["annotations"].values())
