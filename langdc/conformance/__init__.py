"""Tests that anyone's compressor should pass.

pytest --pyargs langdc.conformance --compressor mypkg:MyCompressor --settings '{"strength": 2}'
pytest --pyargs langdc.conformance --kvcompressor mypkg:MyKVCompressor
pytest --pyargs langdc.conformance --layercompressor mypkg:MyLayerCompressor
pytest --pyargs langdc.conformance --frameselector mypkg:MyFrameSelector
"""
