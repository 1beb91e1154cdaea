//! The subscriptions of a session: made at every connection, or ended one after the other.

use rumqttc::v5::{
    AsyncClient,
    mqttbytes::v5::{SubAck, SubscribeReasonCode, UnsubAck, UnsubAckReason},
};
use tokio::sync::watch;

use super::{Status, Subscriptions, packet};

/// What is subscribed to, and how far that has come.
pub(super) struct Subscriber {
    subscriptions: Subscriptions,
    share_group: Option<Box<str>>,
    status: watch::Sender<Status>,
    /// How many are ended, where all are to be.
    ended: usize,
}

impl Subscriber {
    pub(super) fn new(
        subscriptions: Subscriptions,
        share_group: Option<Box<str>>,
        status: watch::Sender<Status>,
    ) -> Self {
        Self { subscriptions, share_group, status, ended: 0 }
    }

    pub(super) fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// A connection stands, and nothing has been sent on it yet.
    pub(super) fn connected(&mut self, client: &AsyncClient) {
        self.status.send_replace(Status::Connected);
        self.ended = 0;
        if self.subscriptions.drain {
            return self.end_next(client);
        }
        // Always, also to a session that has them: the table may have changed since. It goes into an
        // empty queue, before anything else.
        let group = self.share_group.as_deref();
        let filters = self.subscriptions.patterns.iter().map(|p| packet::filter(p, group));
        if client.try_subscribe_many(filters).is_err() {
            tracing::error!("the client library takes no subscription");
        }
    }

    /// The broker has answered the SUBSCRIBE.
    pub(super) fn subscribed(&self, suback: &SubAck) {
        let results = self.subscriptions.patterns.iter().zip(&suback.return_codes);
        let refused: Vec<String> = results
            .filter(|(_, code)| !matches!(code, SubscribeReasonCode::Success(_)))
            .map(|(pattern, code)| format!("{} ({code:?})", pattern.filter()))
            .collect();
        if refused.is_empty() {
            tracing::info!(filters = suback.return_codes.len(), "subscribed");
            self.status.send_replace(Status::Subscribed);
        } else {
            tracing::error!(
                filters = refused.join(", "),
                "the broker refused subscriptions; allow them for this client in its access list"
            );
            self.status.send_replace(Status::Refused(refused));
        }
    }

    /// Ends one: the client library has no word for many, and room for few.
    fn end_next(&self, client: &AsyncClient) {
        let Some(pattern) = self.subscriptions.patterns.get(self.ended) else {
            tracing::info!("unsubscribed: draining what the broker still holds");
            self.status.send_replace(Status::Draining);
            return;
        };
        let filter = packet::filter(pattern, self.share_group.as_deref()).path;
        if client.try_unsubscribe(filter).is_err() {
            tracing::error!("the client library does not unsubscribe");
        }
    }

    /// The broker has answered an UNSUBSCRIBE.
    pub(super) fn unsubscribed(&mut self, unsuback: &UnsubAck, client: &AsyncClient) {
        let Some(pattern) = self.subscriptions.patterns.get(self.ended) else { return };
        let filter = pattern.filter();
        match unsuback.reasons.first() {
            Some(UnsubAckReason::Success) => {}
            Some(UnsubAckReason::NoSubscriptionExisted) => {
                tracing::info!(filter, "there was no such subscription; is share_group the same?");
            }
            reason => {
                tracing::error!(filter, ?reason, "the broker refused to end a subscription");
                self.status.send_replace(Status::Refused(vec![filter]));
                return;
            }
        }
        self.ended += 1;
        self.end_next(client);
    }

    /// More came than could be taken: nothing is drained yet, however quiet it becomes now.
    pub(super) fn overrun(&self) {
        if self.subscriptions.drain {
            self.status.send_replace(Status::Connected);
        }
    }
}
