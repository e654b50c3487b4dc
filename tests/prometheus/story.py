"""What happens while Prometheus looks: a day in the life of a gateway, in less than a minute. Everything that a panel of the
dashboard shows has to come to pass, or its query would have nothing to return."""

import contextlib
import http.client
import itertools
import threading
import time
import urllib.parse

# Of the sandbox's seeded account.
CUSTOMERS = (
    "267958b55d5a463e94a302c20f4a6b68",
    "8c1d4e7fa2b349d0b6c5e8f90a1b2c3d",
)
NOBODY = "00000000000000000000000000000000"


class Story:
    """The callers of one gateway in front of one sandbox. `pause` stretches the quiet parts."""

    def __init__(self, sandbox, gateway, client, prometheus, seed_file, pause):
        self.sandbox, self.gateway, self.client, self.prometheus = sandbox, gateway, client, prometheus
        self.seed_file, self.pause = seed_file, pause

    def tell(self):
        """All of it. Two callers work all the time."""
        with self.callers(count=2, every=0.4):
            self.quiet()
            self.everybody_at_once()
            self.quiet()
            self.requests_that_cannot_be()
            self.a_caller_leaves()
            self.central_throttles()
            self.central_trips()
            self.quiet()
            self.central_forgets_the_token()
            self.quiet()
            self.central_is_down()
            self.quiet()
            self.another_tool_uses_the_token()
            self.quiet()
            self.quiet()
            self.quiet()

    def unassign(self, customer=CUSTOMERS[0], services=("advanced_ap",), timeout=20):
        request = {"include_customers": {"customer_ids": [customer]}, "services": list(services), "reason": "story"}
        return self.client.unassign(request, timeout)

    @contextlib.contextmanager
    def callers(self, count, every):
        """So many callers, each with a request now and then."""
        done = threading.Event()

        def calls(number):
            for customer in itertools.cycle(CUSTOMERS[number % 2 :] + CUSTOMERS[: number % 2]):
                if done.wait(every):
                    return
                self.unassign(customer)

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def quiet(self):
        time.sleep(self.pause)

    def everybody_at_once(self):
        """They wait for their turn and share calls."""
        with self.callers(count=16, every=0.8):
            self.quiet()

    def requests_that_cannot_be(self):
        assert self.unassign(services=()).code == "INVALID_ARGUMENT"
        assert self.unassign(NOBODY).code == "NOT_FOUND"
        assert self.client.list_services().code == "OK"

    def a_caller_leaves(self):
        """The call that was sent runs to its end."""
        self.sandbox.takes(2)
        self.client.leave({"include_customers": {"customer_ids": [CUSTOMERS[0]]}, "services": ["advanced_ap"]}, after=0.5)
        self.sandbox.recovers()

    def central_throttles(self):
        self.sandbox.answers(429, times=2, rate_headers="second_spent")
        self.quiet()
        self.sandbox.recovers()

    def central_trips(self):
        """Outcomes that nobody knows."""
        self.sandbox.answers(503, times=2)
        self.quiet()
        self.sandbox.recovers()
        self.sandbox.loses_connection(times=1)
        self.quiet()
        self.sandbox.recovers()

    def central_forgets_the_token(self):
        """A 401, a refresh, and the request goes on."""
        self.sandbox.revokes("access")
        assert self.unassign().code == "OK"

    def central_is_down(self):
        """Until the breaker opens; then it comes back."""
        self.sandbox.answers(503)
        self.prometheus.wait_for(
            "the breaker opens",
            lambda: self.prometheus.instant('license_gateway_breaker_state{state="open"} == 1'),
        )
        self.quiet()
        self.sandbox.recovers()
        self.prometheus.wait_for(
            "the breaker closes",
            lambda: self.prometheus.instant('license_gateway_breaker_state{state="closed"} == 1'),
        )

    def another_tool_uses_the_token(self):
        """The chain is lost; a person puts in a new seed."""
        self.another_tool_refreshes()
        self.prometheus.wait_for(
            "the alert is seen",
            lambda: any(
                rule["name"] == "LicenseGatewaySeedNeeded" and rule["state"] != "inactive"
                for rule in self.prometheus.rules()
            ),
        )
        self.quiet()
        self.seed_file.write_text(self.sandbox.credentials()["refresh_token"])
        self.prometheus.wait_for(
            "the seed is taken", lambda: self.prometheus.instant("license_gateway_token_seed_needed == 0")
        )

    def another_tool_refreshes(self):
        credentials = self.sandbox.credentials()
        grant = {name: credentials[name] for name in ("client_id", "client_secret", "refresh_token")}
        connection = http.client.HTTPConnection(self.sandbox.address, timeout=10)
        connection.request("POST", "/oauth2/token?" + urllib.parse.urlencode({"grant_type": "refresh_token"} | grant))
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        connection.close()
