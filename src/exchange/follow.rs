//! What follows an answer: what the row's `remember` makes of it is remembered, and the entries of `then` whose condition
//! holds are fetched and pushed.

use std::sync::Arc;

use super::{
    devices::{Devices, Observed},
    fetched::{Trouble, Unfetched},
    filters::Filters,
    outcome::Outcome,
    push::{self, Pusher},
};
use crate::{
    call::Answer,
    failure::{FailureKind, Stopping},
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val},
    fingerprint::fingerprint,
    metrics::Metrics,
    table::{
        Taken,
        fetch::{Condition, Then},
    },
};

/// Decides what follows. One for all devices.
pub(super) struct Follower {
    devices: Arc<Devices>,
    filters: Filters,
    pusher: Pusher,
    metrics: Arc<Metrics>,
}

/// What came of what followed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// How many calls of fetches had a result.
    pub(super) fetched: usize,
    /// What went wrong with the others.
    pub(super) troubles: Vec<Trouble>,
}

impl Followed {
    /// How a row ends that calls nothing but what it fetches: well if a fetch did, or there was none; else as the
    /// worst of them.
    pub(super) fn outcome(self, answer: Answer) -> Outcome {
        let Self { fetched, troubles } = self;
        let worst = troubles.into_iter().max_by_key(|trouble| match trouble {
            Trouble::Failed(_) => u16::MAX,
            Trouble::Answered(answer) => answer.status.as_u16(),
            Trouble::Unusable(_) => 0,
        });
        match worst {
            Some(Trouble::Failed(failure)) if fetched == 0 => Outcome::Failed(failure),
            Some(Trouble::Answered(answer)) if fetched == 0 => Outcome::Rejected(answer),
            Some(Trouble::Unusable(why)) if fetched == 0 => {
                Outcome::Failed(FailureKind::Broken(why.to_string()).into())
            }
            _ => Outcome::Delivered(answer),
        }
    }
}

/// What follows from one answer: entries of `then`, each with what to mark as seen once it is done.
#[derive(Default)]
struct Due<'r> {
    entries: Vec<(&'r Then, Observed)>,
    /// Whether anything follows or has changed, or could not be decided.
    has_effect: bool,
}

impl Follower {
    /// Wires a follower.
    pub(super) fn new(
        devices: Arc<Devices>,
        filters: Filters,
        pusher: Pusher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { devices, filters, pusher, metrics }
    }

    /// Remembers what the row says, and fetches the entries of `then` whose condition holds, in the row's order; after a
    /// large answer first what needs no call.
    ///
    /// # Errors
    /// [`Stopping`] when something that should have been fetched is held, and the gateway stops.
    pub(super) async fn follow(
        &self,
        taken: &Taken<'_>,
        answer: Answer,
    ) -> Result<Followed, Stopping> {
        let Taken { route, speaker, .. } = taken;
        if route.then.is_empty() && route.remember.is_none() {
            return Ok(Followed::default());
        }
        let fingerprint = fingerprint((&route.name, &answer.body));
        let changeable = route.deciding().any(Filter::is_changeable);
        if !changeable && self.devices.is_without_effect(speaker, fingerprint) {
            return Ok(Followed::default());
        }
        // Everything is decided before anything is waited for: no parsed value lives while a call is under way.
        let due = self.due(taken, &answer);
        if !due.has_effect {
            self.devices.mark_without_effect(speaker, fingerprint);
            return Ok(Followed::default());
        }
        // On the heap, where few messages come: it holds a whole call.
        Box::pin(self.fetch(due, taken, answer)).await
    }

    /// Fetches what is due. A fetch that fails stops no other; it is due again with the next answer.
    async fn fetch(
        &self,
        mut due: Due<'_>,
        taken: &Taken<'_>,
        mut answer: Answer,
    ) -> Result<Followed, Stopping> {
        let device = &taken.speaker.device;
        let mut followed = Followed::default();
        if answer.is_large() {
            due.entries.sort_by_key(|(then, _)| then.fetch.call.is_some());
        }
        for (then, observed) in due.entries {
            let fetch = &then.fetch;
            if fetch.call.is_some() {
                answer = answer.without_large_body();
            }
            if then.is_reply_to_push
                && let Some(topic) = push::topic(fetch, taken.captures)
            {
                self.devices.forget_pushed_on(device, &topic);
            }
            let span = taken.message.trace.as_ref().map(|trace| trace.fetch(&fetch.name));
            match self.pusher.fetch(fetch, taken, &answer, span.as_ref()).await {
                Ok(fetched) => {
                    if let Some(span) = &span {
                        span.fetched(fetched.label());
                    }
                    self.metrics.fetched(&fetch.name, fetched.label());
                    self.devices.mark_seen(&taken.speaker, observed);
                    followed.fetched += usize::from(fetch.call.is_some());
                }
                Err(Unfetched::Stopping) => return Err(Stopping),
                Err(Unfetched::Trouble(trouble)) => {
                    if let Some(span) = &span {
                        span.fetched("failed");
                        span.failed("failed", trouble.to_string());
                    }
                    self.metrics.fetched(&fetch.name, "failed");
                    let (fetch, device) = (&*fetch.name, &**device);
                    tracing::warn!(fetch, device, trouble = %trouble, "a fetch failed: nothing is pushed");
                    followed.troubles.push(trouble);
                }
            }
        }
        Ok(followed)
    }

    /// Decides what follows, and remembers what the row wants remembered.
    fn due<'r>(&self, taken: &Taken<'r>, answer: &Answer) -> Due<'r> {
        let Taken { route, speaker, .. } = taken;
        let mut due = Due::default();
        let reads_answer = route.deciding().next().is_some();
        let input = if reads_answer { self.filters.read(&answer.body) } else { Ok(Val::Null) };
        // A plain text is what some APIs say instead of nothing; a page, and JSON that is cut short, is a lie.
        let says_nothing = is_plain_text(answer);
        let remember = route
            .remember
            .as_ref()
            .filter(|remember| input.is_ok() || says_nothing && remember.reads_message());
        let remembered = remember.map(|remember| {
            self.filters.remember(remember, input.clone().unwrap_or_default(), taken)
        });
        due.has_effect |= !matches!(remembered, None | Some(Ok(false)));
        if let Err(error) = &input
            && route.deciding().count() > usize::from(remembered.is_some())
        {
            self.metrics.filter_failed(&route.name);
            due.has_effect = true;
            let (route, device) = (&*route.name, &*speaker.device);
            tracing::warn!(route, device, %error, "the answer cannot be read by filters: fetches that depend on it are skipped");
        }
        let context = self.filters.context(taken, route.deciding().sum());
        for (index, then) in route.then.iter().enumerate() {
            let entry = fingerprint((&route.name, index));
            let observed = match (&then.condition, &input) {
                (Condition::Always, _) => Ok(Some(Observed::always(entry))),
                (condition, Ok(input)) => self.observe(entry, condition, input, &context, taken),
                (Condition::When(_) | Condition::OnChange(_), Err(_)) => Ok(None),
            };
            due.has_effect |= !matches!(observed, Ok(None));
            due.entries.extend(observed.ok().flatten().map(|observed| (then, observed)));
        }
        due
    }

    /// What to mark as seen once an entry of `then` has run; none if its condition does not hold.
    fn observe(
        &self,
        entry: u64,
        condition: &Condition,
        answer: &Val,
        context: &Context,
        taken: &Taken<'_>,
    ) -> Result<Option<Observed>, FilterError> {
        let run = |filter| self.filters.run(filter, answer.clone(), context, &taken.route.name);
        Ok(match condition {
            Condition::Always => Some(Observed::always(entry)),
            Condition::When(when) => {
                run(when)?.iter().any(filter::is_true).then(|| Observed::always(entry))
            }
            Condition::OnChange(value) => {
                let values = run(value)?;
                let value = values.first().filter(|value| !matches!(value, Val::Null));
                let text =
                    value.map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()?;
                let observed = text.map(|text| Observed::of(entry, &text));
                observed.filter(|seen| self.devices.has_changed(&taken.speaker, *seen))
            }
        })
    }
}

/// Whether the API says that its answer is a plain text.
fn is_plain_text(answer: &Answer) -> bool {
    let essence = answer.content_type.as_deref().and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("text/plain"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exchange::fetched::Unusable, fixtures};

    #[test]
    fn a_row_that_only_fetches_ends_well_if_a_fetch_did_and_else_as_the_worst() {
        let end = |fetched: usize, troubles: Vec<Trouble>| {
            let outcome = Followed { fetched, troubles }.outcome(fixtures::answer(204));
            (outcome.code(), outcome.status())
        };
        let failed = || Trouble::Failed(FailureKind::AttemptTimeout.into());
        let answered = |status| Trouble::Answered(fixtures::answer(status));
        let unusable = || Trouble::Unusable(Unusable::Topic);
        assert_eq!(end(0, vec![]), ("delivered", 204), "nothing was to be fetched");
        assert_eq!(end(1, vec![failed(), answered(500)]), ("delivered", 204));
        assert_eq!(end(0, vec![unusable()]), ("broken", 502));
        assert_eq!(end(0, vec![answered(404), unusable(), answered(500)]), ("rejected", 500));
        assert_eq!(end(0, vec![answered(500), failed()]), ("deadline", 504));
    }
}
