"""Sends CloudEvents with the Python SDK, and each again until it is acknowledged."""

import sys
import time
from datetime import datetime, timezone

import requests
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

url, events = sys.argv[1] + "/events", int(sys.argv[2])
for number in range(events):
    event = CloudEvent(
        attributes={
            "id": f"python-{number}",
            "source": "cloudevents-python",
            "type": f"cloudevent {number}",
            "specversion": "1.0",
            "time": datetime.now(timezone.utc),
            "datacontenttype": "application/json",
        },
        data={"number": number},
    )
    message = to_binary_event(event) if number % 2 else to_structured_event(event)
    while True:
        try:
            response = requests.post(url, data=message.body, headers=message.headers, timeout=10)
            if response.status_code < 300:
                break
            if response.status_code not in (429, 503):
                sys.exit(f"{response.status_code}: {response.text}")
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
