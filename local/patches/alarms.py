"""CloudWatch alarms: evaluated every second, on their own dimensions, with missing data treated as the alarm says.

MiniStack evaluates an alarm only when PutMetricData is called (not on EMF or AWS/Lambda), mixes all dimensions of a
metric, and does nothing when data is missing, which is just what a heartbeat alarm is for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import cloudwatch

_log = logging.getLogger("alarms")

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
    "LessThanOrEqualToThreshold": lambda value, threshold: value <= threshold,
}


def apply() -> None:
    evaluate_alarms_every_second()


def evaluate_alarms_every_second() -> None:
    assert hasattr(cloudwatch, "_evaluate_alarm"), "MiniStack's alarm evaluation has moved"
    evaluate_others = cloudwatch._evaluate_alarm

    def evaluate(alarm: dict[str, Any]) -> None:
        if alarm.get("MetricName") and alarm.get("ComparisonOperator") in _COMPARISONS:
            _evaluate(alarm, time.time())
        else:
            evaluate_others(alarm)

    cloudwatch._evaluate_alarm = evaluate
    threading.Thread(target=_evaluate_for_ever, daemon=True).start()


def _evaluate_for_ever() -> None:
    while True:
        time.sleep(1)
        for (account, region, _name), alarm in list(cloudwatch._alarms._data.items()):
            set_request_account_id(account)
            set_request_region(region)
            try:
                cloudwatch._evaluate_alarm(alarm)
            except Exception:  # noqa: BLE001 - one alarm must not end the evaluation of the others
                _log.exception("alarm %s", alarm.get("AlarmName"))


def _evaluate(alarm: dict[str, Any], now: float) -> None:
    periods = alarm.get("EvaluationPeriods", 1)
    needed = alarm.get("DatapointsToAlarm") or periods
    missing = alarm.get("TreatMissingData") or "missing"
    values = [_value(alarm, now - (age + 1) * alarm["Period"], now - age * alarm["Period"]) for age in range(periods)]
    breaches = _COMPARISONS[alarm["ComparisonOperator"]]
    votes = [missing == "breaching" if value is None else breaches(value, alarm["Threshold"]) for value in values]
    if missing in ("missing", "ignore") and all(value is None for value in values):
        state = "INSUFFICIENT_DATA" if missing == "missing" else alarm["StateValue"]
    else:
        state = "ALARM" if sum(votes) >= needed else "OK"
    if state != alarm["StateValue"]:
        shown = ["missing" if value is None else value for value in values]
        reason = f"Threshold Crossed: {shown} {alarm['ComparisonOperator']} {alarm['Threshold']}"
        _change_state(alarm, state, reason)


def _value(alarm: dict[str, Any], start: float, end: float) -> float | None:
    """The alarm's statistic over (start, end], epoch seconds; None when there is no data."""
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions") or []}
    key = (alarm["Namespace"], alarm["MetricName"], cloudwatch._dims_key(dimensions))
    points = [point for point in cloudwatch._metrics.get(key) or () if start < point["Timestamp"] <= end]
    if not points:
        return None
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    value: float | None = cloudwatch._stat_value(cloudwatch._calc_stats(points), statistic, points)
    return value


def _change_state(alarm: dict[str, Any], state: str, reason: str) -> None:
    before = alarm["StateValue"]
    alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
    cloudwatch._record_history(alarm["AlarmName"], before, state, reason)
    cloudwatch._dispatch_alarm_actions(alarm, before, state, reason)
    cloudwatch._evaluate_parent_alarms(alarm)
