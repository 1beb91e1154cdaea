//! What labels there are, and the words that stand in them.

use std::{fmt, sync::Arc};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RouteLabel {
    pub(super) route: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AttemptLabels {
    pub(super) route: Arc<str>,
    pub(super) status: AttemptResult,
}

/// How one HTTP exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptResult {
    /// With this HTTP status.
    Answered(u16),
    /// Without an answer; the label says why.
    Failed(&'static str),
}

impl fmt::Display for AttemptResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.fmt(f),
            Self::Failed(reason) => reason.fmt(f),
        }
    }
}

impl EncodeLabelValue for AttemptResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.encode(encoder),
            Self::Failed(reason) => reason.encode(encoder),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FetchLabels {
    pub(super) fetch: Arc<str>,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SecretLabel {
    pub(super) secret: Arc<str>,
}

/// Of the broker, or of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SideLabel {
    pub(crate) side: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DeadLetterLabels {
    pub(super) route: Arc<str>,
    pub(super) reason: &'static str,
    pub(super) kept: Kept,
}

/// Whether any subscriber got a dead letter, as far as the broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// A client is subscribed.
    Yes,
    /// The broker took it and no client is subscribed: PUBACK No matching subscribers [MQTT 5.0,
    /// 3.4.2.1].
    No,
    /// The broker refused it.
    Refused,
    /// It could not be sent.
    Dropped,
}

impl EncodeLabelValue for Kept {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let label = match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        };
        label.encode(encoder)
    }
}
