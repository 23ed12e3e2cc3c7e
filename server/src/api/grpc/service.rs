//! The methods.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use prost::Message;
use qrm_proto::tokenize::TokenizeRequest;
use qrm_proto::v1;
use qrm_proto::v1::reward_service_server::RewardService;
use qrm_proto::v1::tokenize_request::Content;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::gate::Deadline;
use super::{stream, wire};
use crate::api::auth::Client;
use crate::api::error::ApiError;
use crate::api::{App, scoring, status, tokenize};

pub(super) struct Service(pub(super) Arc<App>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RewardService for Service {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Answer<v1::ScoreResponse> {
        let app = &self.0;
        let (client, deadline) = (client(request.extensions())?, deadline(request.extensions()));
        let request = request.into_inner();
        let held = app.intake.hold(request.encoded_len()).map_err(|_| app.no_room())?;
        let options = request.options.unwrap_or_default();
        let native =
            wire::request(options, request.inputs, deadline, client.arrived).map_err(ApiError::from)?;
        let read = scoring::read(app, client, native, &held).await?;
        let answer = read.answer(app, wire::response).await?;
        let held = held.becomes(answer.encoded_len());
        let mut response = Response::new(answer);
        response.extensions_mut().insert(held);
        Ok(response)
    }

    type ScoreStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ScoreStreamResponse, Status>> + Send>>;

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Answer<Self::ScoreStreamStream> {
        let (client, deadline) = (client(request.extensions())?, deadline(request.extensions()));
        let meter = request.extensions().get().cloned();
        let scores = stream::scores(self.0.clone(), client, deadline, meter, request.into_inner());
        Ok(Response::new(Box::pin(scores)))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Answer<v1::InfoResponse> {
        Ok(Response::new(wire::info(status::about(&self.0))))
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Answer<v1::TokenizeResponse> {
        let app = &self.0;
        let (client, deadline) = (client(request.extensions())?, deadline(request.extensions()));
        let request = request.into_inner();
        let held = app.intake.hold(request.encoded_len()).map_err(|_| app.no_room())?;
        let v1::TokenizeRequest { model, content, add_special_tokens } = request;
        let (prompt, messages) = match content {
            Some(Content::Prompt(text)) => (Some(text), None),
            Some(Content::Messages(list)) => (None, Some(wire::messages(list))),
            None => (None, None),
        };
        let model = (!model.is_empty()).then_some(model);
        let native = TokenizeRequest { model, prompt, messages, add_special_tokens };
        let deadline = deadline.or(scoring::deadline(app, &client, None));
        let answer = scoring::within(deadline, tokenize::tokens(app, native, &held)).await??;
        let answer = wire::tokens(answer);
        let held = held.becomes(answer.encoded_len());
        let mut response = Response::new(answer);
        response.extensions_mut().insert(held);
        Ok(response)
    }
}

/// The gate leaves one with every call it lets in.
fn client(extensions: &Extensions) -> Result<Client, Status> {
    extensions.get().cloned().ok_or_else(|| ApiError::unauthorized().into())
}

fn deadline(extensions: &Extensions) -> Option<std::time::Instant> {
    extensions.get().map(|Deadline(deadline)| *deadline)
}
