//! The baseline: a bare `may_minihttp` responder that only reads the body and answers 202.
//!
//! `bare ADDRESS WORKERS`, as in `bare 127.0.0.1:3999 2`.

use std::io::{self, Read};

use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};

struct Bare {
    body: Vec<u8>,
}

impl HttpService for Bare {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        self.body.clear();
        request.body().read_to_end(&mut self.body)?;
        response.status_code(202, "Accepted");
        Ok(())
    }
}

struct BareFactory;

impl HttpServiceFactory for BareFactory {
    type Service = Bare;

    fn new_service(&self, _connection: usize) -> Bare {
        Bare { body: Vec::with_capacity(64 * 1024) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(workers)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bare ADDRESS WORKERS".into());
    };
    may::config().set_workers(workers.parse()?);
    let server = BareFactory.start(address)?;
    server.join().map_err(|_panic| "the responder panicked")?;
    Ok(())
}
