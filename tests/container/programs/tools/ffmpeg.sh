# ffmpeg: encodes generated video and sound with threads, probes, decodes; hashes of what comes out.
cd /tmp
f() { ffmpeg -hide_banner -loglevel error -nostdin -y "$@"; }
f -f lavfi -i testsrc2=size=320x240:rate=25:duration=2 -f lavfi -i sine=frequency=440:duration=2 -c:v mpeg4 -threads 4 -flags bitexact -fflags bitexact -c:a pcm_s16le out.avi; echo "status $?"
ffprobe -v error -show_entries stream=codec_name,width,height,nb_read_frames -count_frames -of csv out.avi
f -i out.avi -f framemd5 - | md5sum
f -f lavfi -i testsrc2=size=640x360:rate=30:duration=2 -c:v libx264 -preset ultrafast -threads 4 x.mp4; ffprobe -v error -show_entries stream=nb_frames,codec_name -of csv x.mp4
f -i x.mp4 -vf scale=160:90,fps=10 -f rawvideo -pix_fmt gray - | wc -c
f -i none.mp4 -f null - 2>&1 | tail -n 1
f -re -f lavfi -i testsrc=size=64x64:rate=10 -f mpegts pipe:1 | head -c 1000 | wc -c
