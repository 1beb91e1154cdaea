//! A broker in this process, for the command `test`: it delivers messages and hears what is published. Publisher and receipts
//! are those that a connection has.

use std::sync::{Arc, atomic::AtomicUsize};

use tokio::sync::mpsc;

use super::{COMMANDS, Command, Delivery, HeldBytes, Publisher, Receipt, window::Ticket};
use crate::{
    message::{Message, Publication},
    topic::{Captures, PatternIndex},
};

/// Delivers messages and hears what is published.
pub(crate) struct InProcess {
    sender: mpsc::Sender<Command>,
    commands: mpsc::Receiver<Command>,
    held: Arc<AtomicUsize>,
    next_ticket: Ticket,
}

impl InProcess {
    /// With the publisher that it hears.
    pub(crate) fn new() -> (Self, Publisher) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let publisher = Publisher { commands: sender.clone() };
        (Self { sender, commands, held: Arc::default(), next_ticket: 0 }, publisher)
    }

    /// A message as a connection would deliver it.
    pub(crate) fn deliver(
        &mut self,
        message: Message,
        subscription: Option<PatternIndex>,
        captures: Captures,
        sender: Arc<str>,
    ) -> Delivery {
        self.next_ticket += 1;
        let receipt = Receipt {
            ticket: self.next_ticket,
            commands: self.sender.clone(),
            held_bytes: HeldBytes::new(message.payload.len(), &self.held),
        };
        Delivery { message, subscription, captures, sender, receipt }
    }

    /// The next publication; waits for it.
    pub(crate) async fn published(&mut self) -> Publication {
        loop {
            match self.commands.recv().await {
                Some(Command::Publish(publication)) => return *publication,
                Some(
                    Command::Settle(_) | Command::Trace(..) | Command::Finish | Command::Close,
                ) => {}
                // A sender of its own is kept here.
                None => std::future::pending().await,
            }
        }
    }
}
