"""What the demo's world knows: one true fact about each topic, in Korean and in English.

A row is ``Korean name | English name | Korean fact | English fact``. A fact is a noun phrase that
follows "X는" and "X is". English names stand without an article, Korean names end in Hangul (their
last syllable chooses the particle), and no fact names another topic.
"""

TABLE = """
파이썬|Python|배우기 쉽고, 강력한 프로그래밍 언어|an easy and powerful programming language
러스트|Rust|메모리 안전을 중시하는 프로그래밍 언어|a programming language built for memory safety
자바|Java|가상 머신에서 도는 프로그래밍 언어|a programming language that runs on a virtual machine
코틀린|Kotlin|안드로이드 앱에 쓰이는 프로그래밍 언어|a programming language used for Android apps
스위프트|Swift|아이폰 앱에 쓰이는 프로그래밍 언어|a programming language used for iPhone apps
리눅스|Linux|소스가 공개된 운영 체제|an operating system with open source code
위키백과|Wikipedia|누구나 고칠 수 있는 온라인 백과사전|an online encyclopedia that anyone can edit
비트코인|Bitcoin|중앙은행이 없는 디지털 화폐|a digital currency without a central bank
블루투스|Bluetooth|가까운 기기를 잇는 무선 기술|a wireless technology for nearby devices
레이더|radar|전파로 물체를 찾는 장치|a system that finds objects with radio waves
암호화|encryption|자료를 비밀로 지키는 방법|a way of keeping data secret
재활용|recycling|버린 물건을 다시 쓰는 일|the reuse of things thrown away
페니실린|penicillin|세균의 성장을 막는 항생제|an antibiotic that stops the growth of bacteria
아스피린|aspirin|통증과 열을 줄이는 약|a medicine that eases pain and fever
인슐린|insulin|혈당을 낮추는 호르몬|a hormone that lowers blood sugar
카페인|caffeine|잠을 쫓는 성분|a substance that keeps people awake
서울|Seoul|대한민국의 수도|the capital of South Korea
도쿄|Tokyo|일본의 수도|the capital of Japan
파리|Paris|프랑스의 수도|the capital of France
런던|London|영국의 수도|the capital of the United Kingdom
베를린|Berlin|독일의 수도|the capital of Germany
로마|Rome|이탈리아의 수도|the capital of Italy
마드리드|Madrid|스페인의 수도|the capital of Spain
아테네|Athens|그리스의 수도|the capital of Greece
리스본|Lisbon|포르투갈의 수도|the capital of Portugal
오슬로|Oslo|노르웨이의 수도|the capital of Norway
카이로|Cairo|이집트의 수도|the capital of Egypt
나이로비|Nairobi|케냐의 수도|the capital of Kenya
오타와|Ottawa|캐나다의 수도|the capital of Canada
캔버라|Canberra|호주의 수도|the capital of Australia
방콕|Bangkok|태국의 수도|the capital of Thailand
부산|Busan|항구로 유명한 한국 도시|a Korean city famous for its port
경주|Gyeongju|신라의 옛 수도|the old capital of Silla
교토|Kyoto|절이 많은 일본의 옛 도시|an old Japanese city with many temples
베네치아|Venice|운하로 유명한 이탈리아 도시|an Italian city famous for its canals
제주도|Jeju|한국에서 가장 큰 섬|the largest island of Korea
그린란드|Greenland|세계에서 가장 큰 섬|the largest island in the world
아이슬란드|Iceland|화산이 많은 섬나라|an island country with many volcanoes
한라산|Hallasan|남한에서 가장 높은 산|the highest mountain in South Korea
에베레스트|Everest|세계에서 가장 높은 산|the highest mountain in the world
수성|Mercury|태양에 가장 가까운 행성|the planet closest to the Sun
금성|Venus|태양계에서 가장 뜨거운 행성|the hottest planet of the Solar System
화성|Mars|붉은 흙으로 유명한 행성|a planet famous for its red soil
목성|Jupiter|태양계에서 가장 큰 행성|the largest planet of the Solar System
토성|Saturn|밝은 고리를 두른 행성|a planet with bright rings
천왕성|Uranus|옆으로 누워 도는 행성|a planet that spins on its side
해왕성|Neptune|태양에서 가장 먼 행성|the planet farthest from the Sun
명왕성|Pluto|얼음과 바위로 된 왜행성|a dwarf planet of ice and rock
시리우스|Sirius|밤하늘에서 가장 밝은 별|the brightest star in the night sky
북극성|Polaris|북쪽을 알려 주는 별|a star that shows where north is
산소|oxygen|숨 쉬는 데 필요한 기체|the gas that people need to breathe
수소|hydrogen|가장 가벼운 원소|the lightest of all elements
헬륨|helium|풍선에 쓰이는 가벼운 기체|a light gas used in balloons
질소|nitrogen|공기에 가장 많은 기체|the most common gas in the air
탄소|carbon|모든 생물에 들어 있는 원소|an element found in all living things
구리|copper|전기가 잘 통하는 붉은 금속|a red metal that carries electricity well
알루미늄|aluminium|비행기에 쓰이는 가벼운 금속|a light metal used in aircraft
티타늄|titanium|녹이 잘 슬지 않는 강한 금속|a strong metal that hardly rusts
다이아몬드|diamond|가장 단단한 천연 광물|the hardest natural mineral
유리|glass|모래로 만드는 투명한 재료|a clear material made from sand
콘크리트|concrete|시멘트로 만드는 건축 재료|a building material made with cement
김치|kimchi|채소를 발효한 한국 음식|a Korean dish of fermented vegetables
비빔밥|bibimbap|밥에 나물을 섞은 한국 음식|a Korean dish of rice mixed with vegetables
불고기|bulgogi|양념한 소고기를 구운 한국 음식|a Korean dish of marinated beef
막걸리|makgeolli|쌀로 빚은 한국 술|a Korean drink brewed from rice
두부|tofu|콩으로 만든 부드러운 음식|a soft food made from soybeans
초밥|sushi|밥에 생선을 얹은 일본 음식|a Japanese dish of rice and fish
피자|pizza|반죽에 토핑을 얹어 구운 이탈리아 음식|an Italian dish of baked dough with toppings
스파게티|spaghetti|길고 가는 이탈리아 국수|a long thin Italian pasta
초콜릿|chocolate|카카오로 만든 단 음식|a sweet food made from cacao beans
커피|coffee|볶은 원두로 내린 음료|a drink made from roasted beans
요구르트|yogurt|우유를 발효한 음식|a food made from fermented milk
치즈|cheese|우유를 굳혀 만든 음식|a food made from milk curds
버터|butter|크림을 저어 만든 음식|a food made by churning cream
벌꿀|honey|벌이 만드는 단 음식|a sweet food made by bees
체스|chess|상대의 왕을 노리는 보드게임|a board game in which players hunt the king
바둑|baduk|흑돌과 백돌을 놓는 보드게임|a board game played with black and white stones
축구|soccer|주로 발로 하는 단체 운동|a team sport played mostly with the feet
농구|basketball|골대에 공을 던져 넣는 단체 운동|a team sport of throwing a ball into a hoop
야구|baseball|방망이와 공으로 하는 단체 운동|a team sport played with a bat and a ball
배구|volleyball|네트 너머로 공을 넘기는 단체 운동|a team sport of hitting a ball over a net
테니스|tennis|라켓으로 공을 치는 운동|a sport of hitting a ball with a racket
골프|golf|공을 쳐서 구멍에 넣는 운동|a sport of hitting a ball into a hole
태권도|taekwondo|발차기로 유명한 한국 무술|a Korean martial art famous for its kicks
유도|judo|상대를 메치는 일본 무술|a Japanese martial art of throws
수영|swimming|물속에서 하는 운동|a sport of moving through water
양궁|archery|활로 과녁을 맞히는 운동|a sport of shooting arrows at a target
권투|boxing|주먹으로 겨루는 운동|a sport of fighting with the fists
컬링|curling|얼음 위에서 돌을 미는 운동|a sport of sliding stones on ice
중력|gravity|물체를 서로 끌어당기는 힘|a force that pulls things together
마찰력|friction|미끄러지는 물체를 늦추는 힘|a force that slows sliding things
광합성|photosynthesis|식물이 빛으로 양분을 만드는 과정|the way plants make food from light
증발|evaporation|액체가 기체로 변하는 현상|the change from liquid to gas
번개|lightning|하늘에서 치는 전기 불꽃|an electric flash in the sky
안개|fog|땅 가까이에 낀 구름|a cloud that lies near the ground
식물학|botany|식물을 연구하는 학문|the science of plants
천문학|astronomy|별과 행성을 연구하는 학문|the science of stars and planets
기하학|geometry|도형을 다루는 수학 분야|a branch of mathematics about shapes
대수학|algebra|기호를 다루는 수학 분야|a branch of mathematics about symbols
심리학|psychology|마음을 연구하는 학문|the science of the mind
언어학|linguistics|언어를 연구하는 학문|the science of language
통계학|statistics|자료를 분석하는 학문|the science of data
경제학|economics|돈과 자원을 연구하는 학문|the science of money and resources
재즈|jazz|즉흥 연주로 유명한 음악|a kind of music famous for improvisation
오페라|opera|노래로 이야기하는 연극|a kind of theatre set to music
판소리|pansori|북장단에 맞춰 부르는 한국의 이야기 노래|a Korean art of telling stories in song
발레|ballet|무대에서 추는 우아한 춤|a graceful dance for the stage
플라멩코|flamenco|스페인의 춤과 음악|the dance and music of Spain
탱고|tango|아르헨티나를 대표하는 춤|a dance that Argentina is famous for
서예|calligraphy|글씨를 아름답게 쓰는 예술|the art of beautiful writing
한글|Hangul|한국어를 적는 글자|the alphabet of the Korean language
점자|Braille|손끝으로 읽는 글자|an alphabet read with the fingertips
"""
