//! A client's words without a client: for fuzzing, and for tests that need no sockets.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;

use super::handshake::shake_hands;
use super::server::Server;
use super::session::transmit;
use super::wire::{Bell, Ready, Wire};

/// What a client says, from its first byte to its last, and what it hears.
struct Script<'a> {
    said: &'a [u8],
    heard: Vec<u8>,
}

impl Wire for Script<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (now, later) = self.said.split_at(buf.len().min(self.said.len()));
        buf[..now.len()].copy_from_slice(now);
        self.said = later;
        Ok(now.len())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.heard.extend(bytes);
        Ok(())
    }

    fn wait(&mut self, _: &Bell) -> io::Result<Ready> {
        // Its next word, or its end, is always there, and so may be the end of what is under way.
        Ok(Ready { readable: true, rung: true })
    }

    fn has_gone(&self) -> bool {
        false
    }

    fn start_tls(&mut self, _: &Arc<ServerConfig>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Server {
    /// Serves a client that says just this and then goes, and gives what it heard; and whether the server
    /// has cut it off.
    #[doc(hidden)]
    pub fn rehearse(&self, said: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let mut script = Script { said, heard: Vec::new() };
        let (house, stopping) = self.stage();
        let ended = shake_hands(&mut script, house, stopping).and_then(|agreed| match agreed {
            Some(agreed) => transmit(&mut script, agreed, stopping),
            None => Ok(()),
        });
        (script.heard, ended)
    }
}
