"""The messages of ``proto/qrm/v1/reward.proto``, made of its descriptors when they are first needed: code that protoc
generates works with few releases of protobuf, and the RL frameworks all pin one of their own."""

from __future__ import annotations

from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_pool = descriptor_pool.DescriptorPool()
_set = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("reward.desc").read_bytes())
for _file in _set.file:
    _pool.Add(_file)
    for _message in _file.message_type:
        globals()[_message.name] = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_file.package}.{_message.name}"))

_KINDS = {(False, False): "unary_unary", (True, True): "stream_stream"}


class Stub:
    """The methods of ``qrm.v1.RewardService`` on a channel, blocking or asyncio's."""

    def __init__(self, channel):
        service = _pool.FindServiceByName("qrm.v1.RewardService")
        for method in service.methods:
            streams = (method.client_streaming, method.server_streaming)
            call = getattr(channel, _KINDS[streams])(
                f"/{service.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)
