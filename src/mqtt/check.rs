//! What the broker allows, tried as the gateway will do it: subscribing, writing, reading, dead letters.
//!
//! A client identifier of its own keeps a running gateway its session. What is published has `via`, so that no gateway takes
//! it, no payload, and expires at once; its topics are those of a device that does not exist.

use super::{
    Settings, Transport, limits,
    one_off::{OneOff, OneOffError, expiry},
    reader::Limits,
    reason,
};
use crate::topic::Pattern;

/// The device that does not exist.
pub(crate) const DEVICE: &str = "mqtt-rest-gateway-check";

/// What is tried.
pub(crate) struct Trial<'t> {
    /// The patterns to subscribe to.
    pub(crate) patterns: &'t [Pattern],
    /// Topics to publish on. Those that belong to no device are others' as well, and are left alone; so below.
    pub(crate) writes: Vec<String>,
    /// The topic of a dead letter.
    pub(crate) letters: Option<String>,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Report {
    /// What was tried or announced, and what came of it.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// What can lose messages.
    pub(crate) warnings: Vec<String>,
    /// What does not work.
    pub(crate) problems: Vec<String>,
}

/// Connects, reads what the broker announces, subscribes to the table's filters, publishes where the gateway will, looks
/// whether it comes back, and leaves nothing.
///
/// # Errors
/// [`OneOffError`] when the broker takes no connection, or ends it.
pub(crate) async fn check_broker(
    settings: &Settings,
    trial: &Trial<'_>,
) -> Result<Report, OneOffError> {
    let mut settings = Settings {
        client_id: format!("{}-check", settings.client_id).into(),
        // As a member of the group itself it would be given messages that others wait for.
        share_group: settings.share_group.as_ref().map(|group| format!("{group}-check").into()),
        ..settings.clone()
    };
    // How long a session is kept shows only where one is asked for; it has no subscriptions. No clean start:
    // a broker that binds client identifiers to users takes us for the gateway itself, and would end its
    // session with all that waits in it.
    let mut begun = OneOff::begin(&settings, false, expiry(&settings)).await;
    if begun.as_ref().is_err_and(OneOffError::is_about_identity) {
        // Or it refuses every other one.
        let id = settings.client_id.strip_suffix("-check").unwrap_or_default().into();
        settings.client_id = id;
        begun = OneOff::begin(&settings, false, expiry(&settings)).await;
    }
    let (mut connection, connack) = begun?;
    let mut report = Report::default();
    let encrypted = matches!(settings.address.transport, Transport::Mqtts | Transport::Wss);
    let over = if encrypted { " over TLS" } else { "" };
    let Settings { address, client_id, .. } = &settings;
    report.fact("connection", &format!("{address} accepts us{over}, as `{client_id}`"));
    if connack.session_present {
        let text = "not tried: there is a session, the gateway's where ids are bound to users";
        report.fact("subscriptions", text);
        report.fact("reading", "not proven: that session is left alone");
    } else {
        connection.end().await;
        connection = OneOff::begin(&settings, true, 0).await?.0;
        report.subscribe(&mut connection, &settings, trial.patterns).await?;
    }
    if connack.limits.maximum_qos == 0 {
        report.fact("writing", "not proven: at QoS 0 the broker answers nothing");
    } else {
        report.write(&mut connection, client_id, trial).await?;
        if !connack.session_present {
            report.read(&mut connection, client_id, trial.patterns).await;
        }
    }
    connection.end().await;
    report.limits(&settings, &connack.limits);
    Ok(report)
}

impl Report {
    fn fact(&mut self, what: &'static str, text: &str) {
        self.facts.push((what, text.to_owned()));
    }

    async fn subscribe(
        &mut self,
        connection: &mut OneOff,
        settings: &Settings,
        patterns: &[Pattern],
    ) -> Result<(), OneOffError> {
        let (mut refused, mut at_most_once) = (Vec::new(), Vec::new());
        for (filter, answer) in connection.subscribe(settings, patterns, true).await? {
            match answer {
                Some(0) => at_most_once.push(filter),
                Some(code) if !reason::is_failure(code) => {}
                Some(code) => refused.push(format!("{filter} ({})", reason::name(code))),
                None => refused.push(format!("{filter} (no answer)")),
            }
        }
        self.fact("subscriptions", &format!("{} accepted", patterns.len() - refused.len()));
        if !refused.is_empty() {
            self.problems.push(format!(
                "{} refuses subscriptions; allow them in its access list: {}",
                settings.address,
                refused.join(", ")
            ));
        }
        if !at_most_once.is_empty() {
            self.warnings.push(format!(
                "the broker delivers at QoS 0 only, so that messages can be lost on the way: {}",
                at_most_once.join(", ")
            ));
        }
        Ok(())
    }

    /// Publishes where replies, pushes and dead letters will go.
    async fn write(
        &mut self,
        connection: &mut OneOff,
        via: &str,
        trial: &Trial<'_>,
    ) -> Result<(), OneOffError> {
        let mut denied = Vec::new();
        let (own, others) =
            trial.writes.iter().partition::<Vec<_>, _>(|topic| topic.contains(DEVICE));
        for topic in &own {
            let reason = connection.publish(topic, via).await?;
            if reason::is_failure(reason) {
                denied.push(format!("{topic} ({})", reason::name(reason)));
            }
        }
        let allowed = own.len() - denied.len();
        self.fact("writing", &format!("{allowed} of {} topics of a device", own.len()));
        if !others.is_empty() {
            self.fact("writing", &format!("not tried: {} topics of no device", others.len()));
        }
        if !denied.is_empty() {
            self.problems.push(format!(
                "replies and pushes are refused; allow them in the broker's access list: {}",
                denied.join(", ")
            ));
        }
        let Some(topic) = &trial.letters else {
            self.fact("dead letters", "none are published");
            self.warnings.push(
                "[dead_letter] topic is not set: what cannot be delivered is gone".to_owned(),
            );
            return Ok(());
        };
        match connection.publish(topic, via).await? {
            reason if reason::is_failure(reason) => {
                self.fact("dead letters", "refused");
                self.problems.push(format!(
                    "dead letters are refused, and would be lost; allow them in the broker's access list: {topic} ({})",
                    reason::name(reason)
                ));
            }
            reason::NO_MATCHING_SUBSCRIBERS => {
                self.fact("dead letters", "taken, and nobody is subscribed");
                self.warnings.push(format!(
                    "nobody is subscribed to dead letters ({topic}): they would be lost; subscribe with a session of its own"
                ));
            }
            _ => self.fact(
                "dead letters",
                "taken; the broker does not say that nobody is subscribed, which some never say",
            ),
        }
        Ok(())
    }

    /// Publishes where devices do, and looks what comes back: some brokers grant every subscription, and deliver nothing to
    /// who may not read.
    async fn read(&mut self, connection: &mut OneOff, via: &str, patterns: &[Pattern]) {
        let (mut sent, mut unproven) = (Vec::new(), Vec::new());
        let mut ended = None;
        for pattern in patterns {
            let filter = pattern.filter();
            let topic = filter.replace(['+', '#'], DEVICE);
            if topic == filter {
                unproven.push(filter);
                continue;
            }
            match connection.publish(&topic, via).await {
                Ok(reason) if reason::is_failure(reason) => unproven.push(filter),
                Ok(_) => sent.push(topic),
                Err(error) => {
                    ended = Some(error.to_string());
                    break;
                }
            }
        }
        let missing = connection.missing(&sent).await.unwrap_or_default();
        let missing = if ended.is_some() { Vec::new() } else { missing };
        if let Some(error) = ended {
            return self.fact("reading", &format!("not proven: {error}"));
        }
        let back = sent.len() - missing.len();
        self.fact("reading", &format!("{back} of {} filters brought a message", patterns.len()));
        if !unproven.is_empty() {
            self.fact(
                "reading",
                &format!(
                    "not proven, since we may not write there, or there is no device in it: {}",
                    unproven.join(", ")
                ),
            );
        }
        if !missing.is_empty() {
            self.problems.push(format!(
                "what was published did not come back, although the broker accepts the subscriptions; allow reading in its \
                 access list: {}",
                missing.join(", ")
            ));
        }
        self.fact(
            "reading",
            "not proven: Response Topics that devices choose, rights by a device's name",
        );
    }

    fn limits(&mut self, settings: &Settings, limits: &Limits) {
        let or =
            |value: Option<u32>, default: &str| value.map_or(default.to_owned(), |v| v.to_string());
        let yes = |yes| if yes { "yes" } else { "no" };
        self.fact("takes at once", &limits.receive_maximum.to_string());
        self.fact("largest packet", &or(limits.maximum_packet_size, "no limit"));
        self.fact("session expiry", &or(limits.session_expiry, "as asked"));
        self.fact("maximum QoS", &limits.maximum_qos.to_string());
        self.fact("retain", yes(limits.retain));
        self.fact("shared subscriptions", yes(limits.shared_subscriptions));
        self.warnings.extend(limits::warnings(settings, limits));
        if limits.receive_maximum < settings.max_pending {
            self.warnings.push(format!(
                "Receive Maximum is {}, below max_pending = {}: the broker takes so many publications at \
                 once, and EMQX delivers no more messages at once either; raise mqtt.max_inflight (EMQX) or \
                 max_inflight_messages (Mosquitto)",
                limits.receive_maximum, settings.max_pending
            ));
        }
    }
}
