//! Requests of the metrics gateway: answers them at once, after the gateway's log is durable, or
//! from the scrape or the push thread.
//!
//! It runs on the acceptor thread and must not block.

use super::ApiHandler;
use super::intake::RESTART_S;
use crate::access::Grant;
use crate::clock::Moment;
use crate::gateway::handlers::{GatewayHandlers, GatewayRoute, PushOutcome};
use crate::gateway::responses::{durability_not_reached, write_log_unavailable};
use crate::http::{DecompressLimits, Decompressor, problem};
use crate::http::{HandlerResult, Request, Response};
use crate::lifecycle::LifecyclePhase;

/// State of one acceptor for requests of the metrics gateway.
#[derive(Debug)]
pub(super) struct PushContext {
    pages: GatewayHandlers,
    decompressor: Decompressor,
    /// Whether a response of this turn waits for the gateway's log.
    has_waiters: bool,
}

impl PushContext {
    pub(super) fn new(pages: GatewayHandlers, decompressed_bytes_max: usize) -> Self {
        Self {
            pages,
            decompressor: Decompressor::new(DecompressLimits::new(decompressed_bytes_max)),
            has_waiters: false,
        }
    }

    /// Wakes the gateway's log thread, once for all responses of this turn that wait for it.
    pub(super) fn on_turn_end(&mut self) {
        if std::mem::take(&mut self.has_waiters) {
            self.pages.gateway().wake_log_thread();
        }
    }
}

impl ApiHandler {
    /// Whether the header of a request of the metrics gateway is acceptable. Writes a refusal if not.
    pub(super) fn accepts_gateway_head(
        &self,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> bool {
        self.accepts_changes(page, response)
            && self.push_context.pages.accepts_head(page, grant, request, response)
    }

    /// Whether the server is not shutting down, or `page` changes no metrics. Writes a refusal if not.
    fn accepts_changes(&self, page: &GatewayRoute<'_>, response: &mut Response) -> bool {
        let changes = match page {
            GatewayRoute::Push
            | GatewayRoute::Group(_)
            | GatewayRoute::DeleteSeries
            | GatewayRoute::DeleteGroups
            | GatewayRoute::Wipe => true,
            GatewayRoute::Healthy
            | GatewayRoute::Ready
            | GatewayRoute::Scrape
            | GatewayRoute::Groups
            | GatewayRoute::Status => false,
        };
        if changes && self.status.lifecycle.phase() > LifecyclePhase::Serving {
            problem::write_shutting_down(response, RESTART_S);
            return false;
        }
        true
    }

    /// Handles a request of the metrics gateway. `label` is the index of its label in
    /// `router::LABELS`.
    pub(super) fn handle_gateway(
        &mut self,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        (label, started): (usize, Moment),
        response: &mut Response,
    ) -> HandlerResult {
        match page {
            GatewayRoute::Healthy => {
                write_ok(response);
                return HandlerResult::Done;
            }
            GatewayRoute::Ready => {
                self.status.ready(response);
                if response.status == 200 {
                    response.body.clear();
                    if self.push_context.pages.gateway().is_log_available() {
                        write_ok(response);
                    } else {
                        // Clients of this path only push.
                        write_log_unavailable(response);
                    }
                }
                return HandlerResult::Done;
            }
            GatewayRoute::Push
            | GatewayRoute::Group(_)
            | GatewayRoute::DeleteSeries
            | GatewayRoute::DeleteGroups
            | GatewayRoute::Wipe
            | GatewayRoute::Scrape
            | GatewayRoute::Groups
            | GatewayRoute::Status => {
                if !self.accepts_changes(page, response) {
                    return HandlerResult::Done;
                }
            }
        }
        if let Some(asked) = GatewayHandlers::scrape_request(page, request.headers) {
            let headers = response.headers.clone();
            let promise = || self.counted_promise(request, headers, (label, started));
            return self.push_context.pages.submit_scrape(asked, response, promise);
        }
        if let Some(queue) = self.push_context.pages.long_push_queue(page, request) {
            let headers = response.headers.clone();
            let promise = || self.counted_promise(request, headers, (label, started));
            return GatewayHandlers::submit_push(queue, page, grant, request, response, promise);
        }
        let policy_headers_len = response.headers.len();
        match self.push_context.pages.handle(
            page,
            grant,
            request,
            &mut self.push_context.decompressor,
            response,
        ) {
            PushOutcome::Ready => HandlerResult::Done,
            PushOutcome::OnDurable(level) => {
                // The promise prepends the policy headers, also to the response that reports a
                // failure.
                let policy_headers = response.headers.drain(..policy_headers_len).collect();
                let promise = self.counted_promise(request, policy_headers, (label, started));
                let answer = std::mem::take(response);
                let on_durable = move |durable| {
                    promise.fulfil_without_wake(if durable { answer } else { durability_not_reached() })
                };
                self.push_context.pages.gateway().on_durable(level, Box::new(on_durable));
                self.push_context.has_waiters = true;
                HandlerResult::Pending
            }
        }
    }
}

/// Writes the body that Pushgateway's health endpoints answer with.
fn write_ok(response: &mut Response) {
    response.content_type = "text/plain; charset=utf-8";
    response.body.extend_from_slice(b"OK");
}
